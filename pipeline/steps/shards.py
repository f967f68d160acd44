"""The rows that a step works on, in shards: of a source's files, or of a dataset of ours.

Both kinds know how to plan shards for run.json and how to find them again there.
"""

import base64
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.data.records import Records
from pipeline.errors import IntegrityError
from pipeline.sources.shards import Shard, SourceFile, check_shards, each_shard


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

    def plan(self) -> Sequence[Mapping[str, Any]]:
        """The shards for run.json."""
        return Records.of((shard.to_dict() for shard in each_shard(self.files, self.shard_rows)), dict)

    def check(self, stored: Sequence[Mapping[str, Any]], where: Place) -> None:
        """Raise an IntegrityError if the shards that run.json at `where` holds do not hold every row once."""
        check_shards(stored, self.files, str(where))

    def shards(self, stored: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Shard]:
        """The shards at these indices of a plan that was checked."""
        by_path = {file.path: file for file in self.files}
        wanted = ((index, stored[index]) for index in indices)
        return [by_path[shard["file"]].shard(shard["first_row"], shard["num_rows"], i) for i, shard in wanted]


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

    def plan(self) -> Sequence[Mapping[str, Any]]:
        """The shards for run.json."""

        def planned() -> Iterator[dict[str, int]]:
            for first in range(0, self.num_rows, self.shard_rows):
                size = min(self.shard_rows, self.num_rows - first)
                out = {} if self.rows_out is None else {"num_rows": size * self.rows_out}
                yield {"first_row": first, "rows_in": size, **out}

        return Records.of(planned(), dict)

    def check(self, stored: Sequence[Mapping[str, Any]], where: Place) -> None:
        """As in SourceRows."""
        firsts = [*(shard["first_row"] for shard in stored), self.num_rows]
        if firsts != [0, *(shard["first_row"] + shard["rows_in"] for shard in stored)]:
            raise IntegrityError(f"{where} is damaged: its shards do not hold every row once. Use another path.")

    def shards(self, stored: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[RowShard]:
        """As in SourceRows."""
        wanted = ((index, stored[index]) for index in indices)
        return [RowShard(index=i, first_row=shard["first_row"], num_rows=shard["rows_in"]) for i, shard in wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedShard:
    """`num_rows` rows of a dataset. rows: their positions as `_packed` writes them."""

    index: int
    num_rows: int
    rows: str

    @property
    def file(self) -> str:
        """For messages."""
        return f"shard {self.index} of picked rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedRows:
    """Rows of a dataset of ours, shard after shard in the order of these positions. A stored plan names its own.

    kept_only: positions are among the kept rows. Otherwise they are among all rows, and each must be there once.
    """

    rows: Dataset
    positions: NDArray[np.int64]
    shard_rows: int
    kept_only: bool = True

    @property
    def reader(self) -> "PickedRows":
        """It reads by itself."""
        return replace(self, positions=self.positions[:0])  # a shard brings its own

    def read(self, shard: PickedShard) -> pa.Table:
        """The rows of one shard."""
        none = self.rows.schema.empty_table()
        return pa.concat_tables([none, *self.rows.take(_unpacked(shard.rows), kept_only=self.kept_only)])

    def plan(self) -> Sequence[Mapping[str, Any]]:
        """The shards for run.json."""
        firsts = range(0, self.positions.size, self.shard_rows)
        pieces = (np.sort(self.positions[first : first + self.shard_rows]) for first in firsts)
        return Records.of(({"num_rows": rows.size, "rows": _packed(rows)} for rows in pieces), dict)

    def check(self, stored: Sequence[Mapping[str, Any]], where: Place) -> None:
        """Raise an IntegrityError if run.json at `where` names rows that are not there, or one twice, or too few."""
        named = np.zeros(self.rows.num_kept if self.kept_only else self.rows.manifest.num_rows, dtype=np.bool_)
        for shard in stored:
            rows = _unpacked(shard["rows"])
            is_right = 0 < rows.size == shard["num_rows"] and (np.diff(rows, prepend=-1) > 0).all()
            if not is_right or rows[-1] >= named.size or named[rows].any():
                raise IntegrityError(f"{where} is damaged: its shards are not rows of {self.rows.place}.")
            named[rows] = True
        if not self.kept_only and not named.all():
            raise IntegrityError(f"{where} is damaged: its shards lack rows of {self.rows.place}.")

    def shards(self, stored: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[PickedShard]:
        """As in SourceRows."""
        wanted = ((index, stored[index]) for index in indices)
        return [PickedShard(index=index, num_rows=shard["num_rows"], rows=shard["rows"]) for index, shard in wanted]


def picked_positions(stored: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """The positions of all rows that the plan of PickedRows names."""
    return np.concatenate([np.zeros(0, dtype=np.int64), *(_unpacked(shard["rows"]) for shard in stored)])


def _packed(rows: NDArray[np.int64]) -> str:
    """Ascending positions as text, about two bytes each."""
    steps = np.diff(rows, prepend=0).astype("<u8")
    return base64.b64encode(zlib.compress(steps.tobytes())).decode("ascii")


def _unpacked(text: str) -> NDArray[np.int64]:
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<u8")
    return np.cumsum(steps.astype(np.int64))


class StepRows(Protocol):
    """The rows of a step: how they are planned, found again in a plan, and read."""

    @property
    def reader(self) -> ShardReader:
        """Reads the rows, in whatever process."""
        ...

    def plan(self) -> Sequence[Mapping[str, Any]]:
        """The shards for run.json."""
        ...

    def check(self, stored: Sequence[Mapping[str, Any]], where: Place) -> None:
        """Raise an IntegrityError if run.json at `where` does not hold the shards that it should."""
        ...

    def shards(self, stored: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Sequence["AnyShard"]:
        """The shards at these indices of a plan that was checked."""
        ...


AnyShard = Shard | RowShard | PickedShard


def rows_in(plan: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Rows that go into each shard of a stored plan."""
    numbers = (shard.get("rows_in", shard.get("num_rows", 0)) for shard in plan)
    return np.fromiter(numbers, dtype=np.int64, count=len(plan))
