"""The rows that a step works on, in shards: of a source's files, or of a dataset of ours.

Both kinds know how to plan shards for run.json and how to find them again there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import IntegrityError
from pipeline.sources.shards import Shard, SourceFile, plan_shards, stored_shards


class ShardReader(Protocol):
    """Gives the rows of the shards that were planned for it."""

    def read(self, shard: Any) -> pa.Table:
        """The rows of one shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """The rows of a source's files, in shards of `shard_rows`. `reader` reads them, in whatever process."""

    reader: ShardReader
    files: Sequence[SourceFile]
    shard_rows: int

    def plan(self) -> tuple[Mapping[str, Any], ...]:
        """The shards for run.json."""
        return tuple(shard.to_dict() for shard in plan_shards(self.files, self.shard_rows))

    def shards(self, stored: Sequence[Mapping[str, Any]], where: Place) -> Sequence[Shard]:
        """The shards that run.json at `where` holds. Raises an IntegrityError if they do not hold every row once."""
        return stored_shards(stored, self.files, str(where))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShard:
    """`num_rows` rows of a dataset or table from `first_row` on."""

    index: int
    first_row: int
    num_rows: int

    @property
    def file(self) -> str:
        """For messages."""
        return f"rows {self.first_row} to {self.first_row + self.num_rows - 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRows:
    """The kept rows of a dataset of ours, or of a table in memory, in shards of `shard_rows`.

    A table is for steps of a plain loop: it would travel with every Ray task.

    rows_out: rows that come out for each row in; None if it depends on the rows.
    prepare: applied to the rows of a shard first.
    """

    rows: Dataset | pa.Table
    shard_rows: int
    rows_out: int | None = 1
    prepare: Callable[[pa.Table], pa.Table] | None = None

    @property
    def reader(self) -> "OwnRows":
        """It reads by itself."""
        return self

    @property
    def num_rows(self) -> int:
        """Rows that go in."""
        return self.rows.num_kept if isinstance(self.rows, Dataset) else int(self.rows.num_rows)

    def read(self, shard: RowShard) -> pa.Table:
        """The rows of one shard."""
        if isinstance(self.rows, Dataset):
            table = self.rows.rows(shard.first_row, shard.num_rows)
        else:
            table = self.rows.slice(shard.first_row, shard.num_rows)
        return table if self.prepare is None else self.prepare(table)

    def plan(self) -> tuple[Mapping[str, Any], ...]:
        """The shards for run.json."""
        planned: list[dict[str, int]] = []
        for first in range(0, self.num_rows, self.shard_rows):
            size = min(self.shard_rows, self.num_rows - first)
            planned.append({"first_row": first, "rows_in": size})
            if self.rows_out is not None:
                planned[-1]["num_rows"] = size * self.rows_out
        return tuple(planned)

    def shards(self, stored: Sequence[Mapping[str, Any]], where: Place) -> Sequence[RowShard]:
        """As in SourceRows."""
        planned = [RowShard(index=i, first_row=s["first_row"], num_rows=s["rows_in"]) for i, s in enumerate(stored)]
        ends = [0, *(shard.first_row + shard.num_rows for shard in planned)]
        if [*(shard.first_row for shard in planned), self.num_rows] != ends:
            raise IntegrityError(f"{where} is damaged: its shards do not hold every row once. Use another path.")
        return planned


AnyShard = Shard | RowShard
