"""A limit on the time of one call, in whatever thread it runs.

One daemon thread counts how long each call runs, and throws an exception into the thread of a call that takes too long.
It counts its own ticks, not the clock, so a process that was stopped for a while does not count as slow. Python code
ends within a tick or two; code in C finishes first.

No exception leaves the call that it was meant for. The thrower marks its aim before it checks that the call still runs.
The caller marks the end of the call before it checks for an aim. So either the thrower holds back, or the caller waits
for the exception, inside the `try` that catches it. An exception that has not hit is not taken back, by throwing None:
CPython would keep its mark that one is on the way, and from then on 3.11 would hang in every function that is traced.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

TICK_S = 0.25

_START: Final = threading.Lock()
_throw_into: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc

_calls: dict[int, "_Call"] = {}  # the call that a thread is in, by the thread's identity
_watcher: threading.Thread | None = None


class _TimeUp(BaseException):  # not an Exception, so that nothing inside of a call takes it for an error
    pass


@dataclass(slots=True)
class _Call:
    ticks: int
    aimed: int = 0
    thrown: int = 0


def limited(function: Callable[[], T], seconds: float) -> T:
    """What `function` returns or raises, unless it takes much longer than `seconds`. Calls do not nest.

    Raises a TimeoutError if it took longer.
    """
    global _watcher  # noqa: PLW0603 - one for the process
    if _watcher is None:
        with _START:
            if _watcher is None:
                _watcher = threading.Thread(target=_watch, name="time-limit", daemon=True)
                _watcher.start()
    thread = threading.get_ident()
    call = _Call(int(seconds / TICK_S) + 1)
    try:
        try:
            _calls[thread] = call
            return function()
        finally:
            del _calls[thread]
            if call.aimed:
                while call.thrown < call.aimed:
                    time.sleep(0)
                _wait_for_hit(thread)
    except _TimeUp:
        raise TimeoutError(f"took longer than {seconds:g} s") from None


def _wait_for_hit(thread: int) -> None:
    """Let the last exception hit this thread here: one that is thrown now takes the place of one that has not hit."""
    try:
        _throw_into(ctypes.c_ulong(thread), ctypes.py_object(_TimeUp))
        while True:
            time.sleep(0)
    except _TimeUp:
        pass


def _watch() -> None:
    while True:
        time.sleep(TICK_S)
        for thread, call in list(_calls.items()):
            call.ticks -= 1
            if call.ticks < 0:  # again at every tick, as code that Python runs in between may swallow one
                call.aimed += 1
                if _calls.get(thread) is call:
                    _throw_into(ctypes.c_ulong(thread), ctypes.py_object(_TimeUp))
                call.thrown = call.aimed


def _forget() -> None:
    global _watcher  # noqa: PLW0603
    _watcher = None
    _calls.clear()


os.register_at_fork(after_in_child=_forget)  # the threads stay behind
