"""Run one training: `python -m pipeline.training.run JOB.json`, the file being a `TrainJob` as JSON.

The model grows in a hidden folder beside the output, which gets its name when everything is on disk: it is never half
there. A killed run leaves hidden files at most, which the next one removes. A model that is there already is kept, and
nothing is trained.
"""

import contextlib
import errno
import os
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from pipeline.errors import AlignpotError, ConfigError
from pipeline.faults import translated
from pipeline.training.job import TrainJob
from pipeline.training.workplace import finished_summary, publish, workplace

_NO_MEMORY: Final = ("out of memory", "can't allocate memory", "cannot allocate memory")


def run(job: TrainJob) -> dict[str, Any]:
    """Train, unless the output is there already, and return the summary that lies in it."""
    done = finished_summary(job.output)
    if done is not None:
        return done
    with workplace(job.output) as place:
        done = finished_summary(job.output)  # another run may have finished while this one waited
        return _train(job, place) if done is None else done


def _train(job: TrainJob, place: Path) -> dict[str, Any]:
    model, scratch = place / "model", place / "scratch"
    scratch.mkdir()
    begin = time.monotonic()
    if job.settings.method == "command":
        from pipeline.training.command import train_with_command as train
    else:
        from pipeline.training.trl_trainer import train_with_trl as train
    usual, tempfile.tempdir = tempfile.tempdir, str(scratch)  # what libraries leave there goes when the folder goes
    try:
        summary = train(job, model, scratch)
    except AlignpotError:
        raise
    # Trainers and their libraries raise errors of any class; a caller gets one that says what it was.
    except Exception as error:  # noqa: BLE001
        raise _explained(error, job) from None
    finally:
        tempfile.tempdir = usual
    versions = {}
    for name in ("alignpot", "torch", "transformers", "trl", "peft", "datasets"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    summary = {
        "method": job.settings.method,
        "policy": job.policy.model,
        **summary,
        "seconds_in_all": round(time.monotonic() - begin, 3),
        "versions": versions,
    }
    return publish(model, job.output, summary)


def _explained(error: Exception, job: TrainJob) -> AlignpotError:
    """An error of a library in our words. Its text is left out, unless it is about memory: it may quote a row."""
    # torch.OutOfMemoryError is a RuntimeError; a CPU's allocator raises a plain one.
    no_memory = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
    if no_memory or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return AlignpotError(
            f"Training ran out of memory with train.batch_size {job.settings.batch_size} and tokens.max_length "
            f"{job.tokens.max_length}. Lower train.batch_size (and raise train.accumulate as much), or "
            "tokens.max_length, or set train.adapter: lora."
        )
    fault = translated(error, str(job.output)) if isinstance(error, OSError) else None
    if fault is not None:
        return fault
    traceback.print_tb(error.__traceback__)  # lines of code, no values
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return AlignpotError(
        f"Training failed with {type(error).__name__}{reason} at {Path(last.filename).name}:{last.lineno}, in "
        f"{last.name}. The log above has the traceback."
    )


def _choose_devices(job: TrainJob) -> None:
    """Show torch the one GPU that TRL's trainers use here, or none. Must come before torch is imported."""
    if job.settings.method == "command":
        return
    job.check_num_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if job.on_cpu else visible[0]
    if not job.on_cpu:
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(f"train.num_gpus is {job.settings.num_gpus:g}, but no GPU can be used here: set it to 0.")


def main(argv: list[str]) -> int:
    """Run the job in the file that the command line names; an error of ours is one line on stderr and its exit code."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m pipeline.training.run JOB.json\n")
        return ConfigError.exit_code
    try:
        job = TrainJob.from_json(Path(argv[0]).read_text(encoding="utf-8"))
        _choose_devices(job)
        run(job)
    except AlignpotError as error:
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).splitlines())}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
