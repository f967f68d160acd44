"""One check: a name, a look, and a time limit. Whatever the look does, a finding comes out and the next check runs."""

import queue
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Literal

from pipeline.errors import AlignpotError
from pipeline.faults import translated
from pipeline.shown import shown

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; unless it is ok, `says` ends with what to do."""

    state: State
    says: str


def ok(says: str) -> Finding:
    """All is well."""
    return Finding("ok", says)


def warn(says: str) -> Finding:
    """It may fail, or costs more than it must."""
    return Finding("warn", says)


def bad(says: str) -> Finding:
    """It will fail."""
    return Finding("bad", says)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`look` returns a finding. An error that it raises is bad, and so is more time than `limit_s`."""

    name: str
    look: Callable[[], Finding]
    limit_s: float = 60.0

    def run(self) -> Finding:
        """Look, in a thread that is left behind if it hangs."""
        found: queue.SimpleQueue[Finding] = queue.SimpleQueue()
        Thread(target=lambda: found.put(self._looked()), daemon=True).start()
        try:
            return found.get(timeout=self.limit_s)
        except queue.Empty:
            return bad(f"no answer within {self.limit_s:g} s. Check address and network, then look again.")

    def _looked(self) -> Finding:
        try:
            return self.look()
        except AlignpotError as error:
            return bad(str(error))
        except ImportError as error:
            return bad(f"a library cannot be imported: {shown(error, 300)}. Install it again.")
        except Exception as error:  # noqa: BLE001 - one check that fails must not end the others
            fault = translated(error, self.name)
            return bad(f"failed with {type(error).__name__}. Report it." if fault is None else str(fault))
