"""Finds and drops a row that kills its worker, such as one that crashes a kernel or takes all memory.

A worker that was started again after a death marks in the dataset's folder what it begins and what it ends. A shard
that was begun but not ended has killed a second worker: its rows are tried one by one. A row that was begun but not
ended has killed a third: it is dropped. After a first death the shard is only repeated, since a machine may go away at
any time. A worker that never died marks nothing. A worker that dies again while it is built is given up.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import pyarrow as pa

from pipeline.data.commit import create
from pipeline.data.place import Place
from pipeline.drops import Reason, StageName
from pipeline.errors import AlignpotError
from pipeline.steps.guard import by_row
from pipeline.steps.work import Apply

_FOLDER: Final = "_deaths"

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaths:
    """The marks of one dataset; picklable."""

    dataset: Place

    def build(self, worker: str, build: Callable[[], Result]) -> Result:
        """Build what a worker holds, after it died once. Raises an AlignpotError if it died while it was built."""
        place = f"{_FOLDER}/{worker}"
        if self._killed(place):
            raise AlignpotError(
                f"{worker} died each time it was built. The cause is often a model that does not fit into memory: give "
                "it more, or lower replicas; running the same command again alone will not help."
            )
        return self._marked(place, build)

    def apply(self, shard: int, stage: StageName, apply: Apply, table: pa.Table, label: str = "") -> pa.Table:
        """Apply a stage to the rows of a shard, and drop those that killed workers before. label: of the stage."""
        place = f"{_FOLDER}/{shard:08d}-{label or stage}"
        if not self._killed(place):
            return self._marked(place, lambda: apply(table))
        _log.warning("stage %s: shard %d has killed workers; its rows are tried one by one", stage, shard)
        rows = iter(range(table.num_rows))

        def attempt(piece: pa.Table) -> pa.Table | Reason:
            row = f"{place}-{next(rows):08d}"
            return Reason.KILLED_WORKER if self._killed(row) else self._marked(row, lambda: apply(piece))

        return by_row(table, apply, attempt, stage)

    def _killed(self, place: str) -> bool:
        begun, ended = ((self.dataset / f"{place}.{what}").size() is not None for what in ("begun", "ended"))
        return begun and not ended

    def _marked(self, place: str, act: Callable[[], Result]) -> Result:
        create(self.dataset / f"{place}.begun", b"")
        found = act()
        create(self.dataset / f"{place}.ended", b"")
        return found
