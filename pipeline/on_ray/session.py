"""Joins a Ray cluster or starts a local one, and turns Ray's errors into ours."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import ray
import ray.data
import ray.exceptions
from ray._private import ray_constants

from pipeline.config import Replicas, Run
from pipeline.errors import AlignpotError, ConfigError, TemporaryError
from pipeline.shown import shown

# Logical CPUs of a local Ray for reading, tokenising and committing beside the model actors.
_LOCAL_IO_CPUS: Final = 2
_DIED: Final = (
    ray.exceptions.ActorDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RuntimeEnvSetupError,
)


@contextmanager
def ray_session(run: Run, models: Sequence[Replicas]) -> Iterator[None]:
    """A Ray to work on: the one this process is in, the cluster at `run.address` or RAY_ADDRESS, or a local one.

    A local Ray gets enough logical CPUs to place every actor. On a small machine the pools share its cores.

    Raises:
        ConfigError: the cluster refuses this Ray's version or token.
        TemporaryError: no cluster answers, a local Ray does not come up, or either lost a node or an object.
        AlignpotError: a worker failed with a foreign error, or died more often than Ray retries.
    """
    started_here = not ray.is_initialized()
    try:
        if started_here:
            with _our_sigterm():
                _start(run, models)
        _set_up_context()
        yield
    except ray.exceptions.RayError as error:
        raise _as_ours(error) from None
    finally:
        if started_here:
            ray.shutdown()


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM. ray.init sets handlers that end with exit codes of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if callable(before):
            before(signal.SIGTERM, None)
        raise TemporaryError("terminated by SIGTERM while connecting to Ray. Run the same command again.") from None
    finally:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:  # as ours leaves it
            signal.signal(signal.SIGTERM, before)


def _start(run: Run, models: Sequence[Replicas]) -> None:
    address = run.cluster
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if address is not None:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, TimeoutError) as error:
            raise TemporaryError(f"no Ray cluster answers at {address} ({type(error).__name__}).") from None
        except (RuntimeError, ValueError) as error:
            reason = shown(" ".join(str(error).split()), 400)
            raise ConfigError(f"Ray at {address} cannot be joined: {reason}") from None
        return
    needed = sum(m.replica_range[1] * m.num_cpus for m in models) + _LOCAL_IO_CPUS
    num_cpus = max(os.cpu_count() or 1, int(needed + 0.999))
    try:
        with _on_loopback():
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **common)
    except Exception as error:
        # Ray has no class of its own for processes that are not up after 30 seconds.
        if type(error) is not Exception:
            raise
        raise TemporaryError(
            f"a local Ray did not start: {str(error).strip().splitlines()[0]} Run the same command again, with less "
            "beside it on this machine."
        ) from None


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a Ray that starts in this block listen on loopback alone, as it does on systems where it joins no cluster.

    Ray has no option for it: the address that it is given, if it is loopback, is replaced by one of the network.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _set_up_context() -> None:
    # Only the deprecated ray_remote_args can limit the restarts of pool actors.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated", category=DeprecationWarning)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # steps show their own; see progress
    for name, level in (("progress", logging.ERROR), ("execution.streaming_executor", logging.WARNING)):
        logging.getLogger(f"ray.data._internal.{name}").setLevel(level)
    # Every 30 s it would warn that a model takes memory, since no pool reserves memory.
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    context.execution_options.preserve_order = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    # An actor that dies while it loads its model (memory, a busy GPU) gets another try; Ray's default is none.
    context.max_consecutive_actor_init_deaths = 3


def _as_ours(error: ray.exceptions.RayError) -> AlignpotError:
    """A foreign failure as an error of ours. It names only the class: the text may quote a row.

    It is temporary if another machine or another hour may cure it. Ray has already retried by itself.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = getattr(error, "cause", None) or error
        return AlignpotError(f"a worker failed with {type(cause).__name__}. The log above has the traceback.")
    name = type(error).__name__
    if isinstance(error, _DIED) and not getattr(error, "preempted", False):
        return AlignpotError(
            f"a worker died each time it was started again ({name}). Look into its log for the cause, often a model "
            "that does not fit into memory; running the same command again alone will not help."
        )
    return TemporaryError(f"Ray lost a worker, node or object ({name}). Run the same command again.")
