"""Events of OpenLineage, sent by its client the way that the client is set up; nothing is sent if it is not.

The client's own default is to print events; that is never taken here. A transport that fails is left alone from then
on.
"""

import datetime
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pipeline.data.manifest import SCORED
from pipeline.observers.facts import Facts, Name
from pipeline.observers.parents import attempt

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient

State = Literal["START", "RUNNING", "COMPLETE", "FAIL", "ABORT"]

RUNNING_S: Final = 60.0
"""Seconds between two events of a run."""
_TENTHS: Final = 10
_CLOSE_S: Final = 10.0
_VARIABLES: Final = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT")

_log = logging.getLogger(__name__)


class Lineage:
    """Sends the events of one command."""

    def __init__(self, client: "OpenLineageClient") -> None:
        self._client = client
        self._last = (time.monotonic(), 0)
        """When the last event was sent, and at which tenth of the rows."""

    @classmethod
    def find(cls) -> "Lineage | None":
        """By the client's own variables and files; None if they name no transport, with a warning if they mean to."""
        if not _is_set_up(os.environ):
            return None
        try:
            from openlineage.client import OpenLineageClient
        except ImportError:
            _log.warning(
                "OpenLineage is set up, but its client is not installed, so no lineage is sent. "
                "Run: pip install 'alignpot[lineage]'"
            )
            return None
        log = logging.getLogger("openlineage")
        level = log.level
        log.setLevel(logging.ERROR)  # it would quote settings that it cannot read
        try:
            client = OpenLineageClient()
        except Exception as error:  # noqa: BLE001 - of settings, which may hold keys: the text is not shown
            _log.warning(
                "OpenLineage cannot be set up (%s), so no lineage is sent. Correct OPENLINEAGE_URL, OPENLINEAGE_CONFIG "
                "or OPENLINEAGE__TRANSPORT__*.",
                type(error).__name__,
            )
            return None
        finally:
            log.setLevel(level)
        if client.transport.kind == "console" and not (client.config.transport or {}).get("type"):
            _log.warning("OpenLineage is set up without a transport, so no lineage is sent. Name its type.")
            return None
        return cls(client)

    def emit(self, state: State, facts: Facts, error: str | None = None) -> None:
        """Send an event. Raises whatever the client raises."""
        from pipeline.observers.events import event_of

        now = datetime.datetime.now(datetime.UTC).isoformat()
        self._client.emit(event_of(state, facts, run_id_of(facts), now, error))

    def running(self, facts: Facts, name: str, done: int, total: int) -> None:
        """Send an event at each tenth of the scored rows, if the last one is some time ago."""
        tenth = _TENTHS * done // max(total, 1)
        is_soon = tenth == self._last[1] or time.monotonic() - self._last[0] < RUNNING_S
        if name != SCORED or facts.command not in ("run", "score") or done == total or is_soon:
            return
        self._last = time.monotonic(), tenth
        scored, *others = facts.outputs
        self.emit("RUNNING", replace(facts, outputs=[replace(scored, num_rows=done), *others]))

    def close(self) -> None:
        """Wait for events that are on their way, for a while."""
        self._client.close(_CLOSE_S)


def run_id_of(facts: Facts) -> str:
    """The same for one work, wherever it goes on: of what is made, where, from what, and of the scheduler's attempt.

    So a command that finds everything done does not look like more work.
    """
    decisive = facts.fingerprint or facts.config
    text = json.dumps([facts.command, Name.of(facts.place), decisive, attempt()], sort_keys=True)
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"alignpot:{text}"))


def _is_set_up(variables: Mapping[str, str]) -> bool:
    if variables.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    # Unlike pathlib, this raises nothing where a user has no home.
    at_home = os.path.expanduser("~/.openlineage/openlineage.yml")  # noqa: PTH111
    files = (Path("openlineage.yml"), Path(at_home))
    return any(name.startswith(_VARIABLES) for name in variables) or any(file.is_file() for file in files)
