"""Train a policy in a process of its own, so that its memory and its GPU are free again afterwards.

The process ends with this one, however this one ends. Its log goes to stderr, line by line; its errors are raised here
with their own class.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO, Any, Final

from pipeline import errors
from pipeline.errors import AlignpotError, TemporaryError
from pipeline.scratch import scratch_folder
from pipeline.training.job import TrainJob
from pipeline.training.workplace import finished_summary

_PACKAGE_ROOT: Final = Path(__file__).parents[2]
_OF_OTHER_PROCESSES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOG_END_TIMEOUT_S: Final = 5.0


def train(job: TrainJob) -> dict[str, Any]:
    """Train as a job says, or keep the policy that is there already; returns what its `training.json` says.

    Raises:
        TemporaryError: the process was killed; the same call goes on.
        AlignpotError: of the class that the process ended with.
    """
    summary = finished_summary(job.output)
    if summary is None:
        with scratch_folder("train") as folder:
            file = folder / "job.json"
            file.write_text(job.model_dump_json(), encoding="utf-8")
            code, last = _run([sys.executable, "-m", "pipeline.training.run", str(file)], _environment(job))
        if code:
            raise _failure(code, last)
        summary = finished_summary(job.output)
    if summary is None:
        raise AlignpotError(f"Training ended well, but {job.output} is not there. Is it on a disk of this machine?")
    return summary


def _environment(job: TrainJob) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in _OF_OTHER_PROCESSES}
    paths = [str(_PACKAGE_ROOT), *filter(None, [own.get("PYTHONPATH")])]
    own |= {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    if job.on_cpu and job.settings.method != "command":
        own["OMP_NUM_THREADS"] = str(job.settings.num_threads)
    return own


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
    reader = threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        code = process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # all that the program has started and left behind
        process.wait()
        reader.join(_LOG_END_TIMEOUT_S)
        if process.stdin is not None:
            process.stdin.close()
    return code, lines[-1] if lines else ""


def _pass_on(log: IO[str], lines: deque[str]) -> None:
    for line in log:
        sys.stderr.write(line)
        if line.strip():
            lines.append(line.strip())
    log.close()


def _failure(code: int, last: str) -> AlignpotError:
    if code < 0:
        return TemporaryError(
            f"Training was killed by signal {-code}: memory ran out, or the machine was taken away. Run the same "
            "command again; if it is killed again, lower train.batch_size or tokens.max_length."
        )
    name, _, message = last.partition(": ")
    kind = getattr(errors, name, None) if name.isidentifier() else None
    if isinstance(kind, type) and issubclass(kind, AlignpotError) and message:
        return kind(message)
    return AlignpotError(f"Training ended with exit code {code}; its log on stderr says why.")
