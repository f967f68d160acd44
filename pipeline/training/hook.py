"""Train a policy in a process of its own, so that its memory and its GPU are free again afterwards.

The process ends with this one, however this one ends. Its log goes to stderr, line by line; its errors come back as
the errors they were.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from pipeline import errors
from pipeline.config import TorchModel
from pipeline.errors import AlignpotError, TemporaryError
from pipeline.scratch import scratch_folder
from pipeline.training.job import TrainJob
from pipeline.training.workplace import finished_summary

_PACKAGE_ROOT: Final = Path(__file__).parents[2]
_OF_OTHER_PROCESSES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PUMP_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """A trained policy.

    Attributes:
        policy: directory of the whole model, which transformers and vLLM load.
        digest: of its weights: equal for equal weights, wherever they lie.
        summary: what `training.json` says: rows, steps, loss, reward accuracy and reward margin of the first and the
            last step, seconds, versions.
    """

    policy: Path
    digest: str
    summary: dict[str, Any]


def train(job: TrainJob, *, env: Mapping[str, str] | None = None) -> TrainResult:
    """Train as a job says and return the policy; one that is there already is kept as it is.

    Args:
        job: what to train.
        env: environment variables of the process, beside those of this one.

    Raises:
        TemporaryError: the process was killed; the same call goes on.
        AlignpotError: of the class that the process ended with.
    """
    if finished_summary(job.output) is None:
        with scratch_folder("train") as folder:
            file = folder / "job.json"
            file.write_text(job.to_json(), encoding="utf-8")
            code, last = _run([sys.executable, "-m", "pipeline.training.run", str(file)], _environment(job, env or {}))
        _raise_failure(code, last)
    return _result(job)


def _result(job: TrainJob) -> TrainResult:
    from pipeline.models.fingerprints import model_fingerprint

    summary = finished_summary(job.output)
    if summary is None:
        raise AlignpotError(f"Training ended well, but {job.output} is not there. Is it on a disk of this machine?")
    fingerprint = model_fingerprint(TorchModel(model=str(job.output), dtype=job.policy.dtype))
    return TrainResult(policy=job.output, digest=fingerprint["weights"], summary=summary)


def _environment(job: TrainJob, extra: Mapping[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in _OF_OTHER_PROCESSES}
    paths = [str(_PACKAGE_ROOT), *filter(None, [own.get("PYTHONPATH")])]
    settled = {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    if job.on_cpu and job.settings.method != "command":
        settled["OMP_NUM_THREADS"] = str(job.settings.num_threads)
    return {**own, **settled, **extra}


def _run(words: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a program on a leash; returns its exit code, negative for a signal, and the last line it wrote."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.training.leash", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    lines: deque[str] = deque(maxlen=1)
    pump = threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True)
    pump.start()
    try:
        code = process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # all that the program has started and left behind
        process.wait()
        pump.join(_PUMP_TIMEOUT_S)
        if process.stdin is not None:
            process.stdin.close()
    return code, lines[-1] if lines else ""


def _pass_on(log: IO[str], lines: deque[str]) -> None:
    for line in log:
        sys.stderr.write(line)
        if line.strip():
            lines.append(line.strip())
    log.close()


def _raise_failure(code: int, last: str) -> None:
    if code == 0:
        return
    if code < 0:
        raise TemporaryError(
            f"Training was killed by signal {-code}: memory ran out, or the machine was taken away. Run the same "
            "command again; if it is killed again, lower train.batch_size or tokens.max_length."
        )
    name, _, message = last.partition(": ")
    kind = getattr(errors, name, None) if name.isidentifier() else None
    if isinstance(kind, type) and issubclass(kind, AlignpotError) and message:
        raise kind(message)
    raise AlignpotError(f"Training ended with exit code {code}; its log on stderr says why.")
