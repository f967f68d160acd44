"""SIGTERM, by which schedulers end a job, as a TemporaryError with its exit code.

The handler raises wherever the main thread is. That may be inside a library that swallows exceptions, so the signal is
also remembered, and steps ask for it between two shards. Further signals are ignored: they would interrupt the cleanup.
"""

import signal
import threading
from types import FrameType
from typing import Final

from pipeline.errors import TemporaryError

_TOLD: Final = threading.Event()


def heed_sigterm() -> None:
    """Have the first SIGTERM end this process with a TemporaryError; to be called in the main thread."""
    _TOLD.clear()
    signal.signal(signal.SIGTERM, _on_sigterm)


def is_terminated() -> bool:
    """Whether a SIGTERM arrived since `heed_sigterm`."""
    return _TOLD.is_set()


def raise_if_terminated() -> None:
    """Raise the error of such a SIGTERM."""
    if is_terminated():
        raise TemporaryError("terminated by SIGTERM. Run the same command again: it goes on where it stopped.")


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(signum, signal.SIG_IGN)  # which Python, unlike a handler, leaves in place while it shuts down
    _TOLD.set()
    raise_if_terminated()
