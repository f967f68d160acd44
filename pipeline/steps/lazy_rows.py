"""The rows of a lazy run, with what its rounds have given so far: to choose the next rows, and to seal the dataset."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.drops import Reason, StageName
from pipeline.errors import IntegrityError
from pipeline.metrics.columns import BoolArray, FloatArray, float_column
from pipeline.selection.source import Positions
from pipeline.steps.rows import drop_rows, kept_rows, set_column
from pipeline.steps.shards import RowShard

_GONE: Final = -1
_SKIPPED, _SCORED, _SAMPLED, _PASSED_OVER = range(len(schema.SCORINGS))


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyRows:
    """Rows whose rewards are known, as a source of a selection. Arrays are over the kept rows of `rewarded`.

    logps: by column, NaN where a row has none. scoring: places in `schema.SCORINGS`, -1 for a row that a round dropped.
    drops: why, by place.
    """

    rewarded: Dataset
    logps: dict[str, FloatArray]
    scoring: npt.NDArray[np.int8]
    drops: dict[int, tuple[StageName, Reason]] = field(default_factory=dict)

    @classmethod
    def of(cls, rewarded: Dataset, columns: Sequence[str]) -> "LazyRows":
        """Before the first round. columns: those that rounds fill."""
        size = rewarded.num_kept
        return cls(
            rewarded=rewarded,
            logps={name: np.full(size, np.nan) for name in columns},
            scoring=np.full(size, _SKIPPED, dtype=np.int8),
        )

    def add(self, scored: Dataset, places: Positions, sampled: BoolArray) -> None:
        """Take over what a round gave. places: of its rows, in their order. sampled: bool over all kept rows."""
        start = 0
        names = [*self.logps, schema.STATUS, schema.DROP_STAGE, schema.DROP_REASON]
        for table in scored.tables(names, kept_only=False):
            rows = places[start : start + table.num_rows]
            for name, values in self.logps.items():
                values[rows] = float_column(table, name)
            self.scoring[rows] = np.where(sampled[rows], _SAMPLED, _SCORED)
            is_kept = np.zeros(rows.size, dtype=np.bool_)
            is_kept[kept_rows(table)] = True
            for row in np.flatnonzero(~is_kept).tolist():
                drop = (table[schema.DROP_STAGE][row].as_py(), Reason(table[schema.DROP_REASON][row].as_py()))
                self.drops[int(rows[row])] = drop
            self.scoring[rows[~is_kept]] = _GONE
            start += table.num_rows

    def pass_over(self, rows: BoolArray) -> None:
        """Leave these rows out of all rounds, before any is added. rows: bool over all kept rows."""
        self.scoring[rows] = _PASSED_OVER

    @property
    def places(self) -> Positions:
        """Places of the rows that are not dropped."""
        return np.flatnonzero(self.scoring != _GONE)

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return pa.schema([*self.rewarded.schema, schema.LAZY_FIELDS[0]])

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `selection.source.Source`."""
        first = 0
        for table in self.rewarded.tables(self._stored(columns)):
            places = np.arange(first, first + table.num_rows)
            first += table.num_rows
            yield self._with(table, places, columns).filter(self.scoring[places] != _GONE)

    def take(self, positions: Positions, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `selection.source.Source`."""
        places, start = self.places[positions], 0
        for table in self.rewarded.take(places, self._stored(columns)):
            yield self._with(table, places[start : start + table.num_rows], columns)
            start += table.num_rows

    def has_values(self, column: str) -> bool:
        """As `selection.source.Source`."""
        if column in self.logps:
            return bool(np.isfinite(self.logps[column]).any())
        return column == schema.SCORING or self.rewarded.has_values(column)

    def split(self, num_parts: int) -> Sequence[tuple[int, "LazyRows"]]:
        """As `selection.source.Source`."""
        pieces = []
        for first, dataset in self.rewarded.split(num_parts):
            rows = slice(first, first + dataset.num_kept)
            logps = {name: values[rows] for name, values in self.logps.items()}
            start = int(np.searchsorted(self.places, first))
            pieces.append((start, LazyRows(rewarded=dataset, logps=logps, scoring=self.scoring[rows])))
        return pieces

    def _stored(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if name not in self.logps and name != schema.SCORING] or [schema.ID]

    def _with(self, table: pa.Table, places: Positions, columns: Sequence[str]) -> pa.Table:
        own = {name: pa.array(values[places], from_pandas=True) for name, values in self.logps.items()}
        if schema.SCORING in columns:
            own[schema.SCORING] = pa.array(schema.SCORINGS, pa.string()).take(np.maximum(self.scoring[places], 0))
        return pa.table({name: own[name] if name in own else table[name] for name in columns})


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRows:
    """Every row of a lazy run, dropped ones too: a shard for each part of `lazy.rewarded`.

    bounds: of the skipped rows, NaN for other rows and for skipped ones that the rules leave out; over all kept rows.
    """

    lazy: LazyRows
    bounds: FloatArray
    schema: pa.Schema

    @property
    def reader(self) -> "SealedRows":
        """It reads by itself."""
        return self

    def plan(self) -> Sequence[Mapping[str, Any]]:
        """The shards for run.json: the first kept row of each part, and its rows."""
        files = self.lazy.rewarded.manifest.files
        firsts = np.cumsum([0, *(file.num_kept for file in files)]).tolist()
        return [{"first_row": first, "num_rows": file.num_rows} for first, file in zip(firsts, files, strict=False)]

    def check(self, stored: Sequence[Mapping[str, Any]], where: Place) -> None:
        """As in SourceRows."""
        if [*stored] != [*self.plan()]:
            raise IntegrityError(f"{where} is damaged: its shards do not hold every row once. Use another path.")

    def shards(self, stored: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[RowShard]:
        """As in SourceRows."""
        return [RowShard(index=index, **stored[index]) for index in indices]

    def read(self, shard: RowShard) -> pa.Table:
        """The rows of one shard."""
        table, lazy = self.lazy.rewarded.part(shard.index).combine_chunks(), self.lazy
        rows = kept_rows(table)
        places = np.arange(shard.first_row, shard.first_row + rows.size)
        is_kept = lazy.scoring[places] != _GONE
        for name, values in {**lazy.logps, schema.BOUND: self.bounds}.items():
            column = np.full(table.num_rows, np.nan)
            column[rows] = np.where(np.isneginf(values[places]), np.nan, values[places])
            table = set_column(table, name, pa.array(column, from_pandas=True))
        scoring = np.full(table.num_rows, _GONE)
        scoring[rows] = lazy.scoring[places]
        names = pa.array(schema.SCORINGS, pa.string())
        table = set_column(table, schema.SCORING, names.take(pa.array(scoring, mask=scoring == _GONE)))
        dropped = {
            int(row): lazy.drops[int(place)] for row, place in zip(rows[~is_kept], places[~is_kept], strict=True)
        }
        for stage in dict.fromkeys(stage for stage, _ in dropped.values()):
            reasons = {row: reason for row, (at, reason) in dropped.items() if at == stage}
            table = drop_rows(table, reasons, stage=stage)
        return table.select(self.schema.names).cast(self.schema)
