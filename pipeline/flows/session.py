"""Joining a Ray cluster or starting a local one, and turning what Ray raises into our errors."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
import ray.exceptions

from pipeline.config import Run, TorchModel
from pipeline.errors import AlignpotError, TemporaryError

_log = logging.getLogger(__name__)

# Reading, tokenising and committing run beside the model actors on a local Ray; these are logical CPUs for them.
_LOCAL_IO_CPUS = 2


@contextmanager
def ray_session(run: Run, models: Sequence[TorchModel]) -> Iterator[None]:
    """A Ray to work on: one this process is in already, the cluster at `run.address` or RAY_ADDRESS, or a local one.

    A local Ray gets enough logical CPUs for every actor to be placed: on a small machine the pools share its cores.

    Raises:
        AlignpotError: the error of ours that a task or actor raised, with its own exit code.
        TemporaryError: Ray lost a worker, node or object more often than it retries.
    """
    started_here = not ray.is_initialized()
    if started_here:
        _start(run, models)
    try:
        _set_up_context()
        yield
    except ray.exceptions.RayError as error:
        raise _as_ours(error) from error
    finally:
        if started_here:
            ray.shutdown()


def gpus_per_replica(model: TorchModel) -> float:
    """GPUs that one replica reserves: as configured, or one where the cluster has any."""
    if model.num_gpus != "auto":
        return model.num_gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def _start(run: Run, models: Sequence[TorchModel]) -> None:
    address = run.address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if address and address != "local":
        ray.init(address=address, **common)
        return
    needed = sum(m.replicas * m.num_cpus for m in models) + _LOCAL_IO_CPUS
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(needed + 0.999)),
        include_dashboard=False,
        **common,
    )


def _set_up_context() -> None:
    # Ray has no other way yet to limit restarts of pool actors than the arguments it means to retire.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated", category=DeprecationWarning)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = False
    context.print_on_execution_start = False
    # A model that fails to load twice in a row (a busy GPU, a slow disk) is worth another try; Ray's default is none.
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 3


def _as_ours(error: BaseException) -> AlignpotError:
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, AlignpotError):
            return type(cause)(*cause.args)
        cause = getattr(cause, "cause", None) or cause.__cause__
    if isinstance(error, ray.exceptions.RayTaskError):
        return AlignpotError(f"a worker failed: {type(error.cause or error).__name__}: {_first_line(error)}")
    return TemporaryError(f"Ray gave up on a worker or node ({type(error).__name__}). Run the same command again.")


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().splitlines()[0][:300] if str(cause).strip() else "no message"
