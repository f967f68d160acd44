"""From a shard of the source to a table of pairs: one row out for each row in, in the same order.

`open.open_source` checks the whole source before. A `PairReader` raises only for a file that is corrupt or has changed.
A malformed row is a dropped row.

Pairs of Parquet and Arrow are made of whole columns where `column_pairs` can, the other rows one by one. Both ways
give the same table.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.drops import Drop, Reason
from pipeline.sources.beside_text import check_fields
from pipeline.sources.blocks import read_rows, rows_of_columns, rows_of_lines
from pipeline.sources.column_pairs import NotPlain, candidate_rewards, column_pairs, is_true, plain_arrays
from pipeline.sources.columns import Row, kept_only, undecodable_rows
from pipeline.sources.contamination import Contamination
from pipeline.sources.formats import FORMATS
from pipeline.sources.left_out import Condition, Sample
from pipeline.sources.mapping import ColumnMap
from pipeline.sources.passthrough import fitted, fitted_column
from pipeline.sources.rows import BEST_WORST, Format, PairRow, Pairs, content_digest, content_digests, reason_of
from pipeline.sources.scores import NO_SCORES, ScorePlan, column_scores, read_scores
from pipeline.sources.shards import Shard
from pipeline.sources.turns import id_of

_PIECE_ROWS: Final = 1024  # converted at once: few enough for a processor's cache


@dataclass(frozen=True, kw_only=True)
class PairReader:
    """Reads shards of one source; can be pickled and used in any process that reaches the file system."""

    fs: Any
    """fsspec file system of the source."""
    root: str
    """Folder that the paths of shards are relative to."""
    format: str
    id_column: str | None = None
    passthrough: tuple[pa.Field, ...] = ()
    scores: ScorePlan = NO_SCORES
    rewards: tuple[str, ...] = ("",)
    """Names of all rewards, whoever gives them."""
    pairs: Pairs = BEST_WORST
    pair_schema: pa.Schema = s.PAIR_SCHEMA
    columns: tuple[str, ...] = ()
    """Mapped columns to read from Parquet and Arrow, without those of `passthrough`."""
    map: ColumnMap = field(default_factory=ColumnMap)
    sample: Sample | None = None
    where: Condition | None = None
    benchmarks: Contamination | None = None
    """Rules that leave out rows; `open_source` reads no benchmarks."""
    split: str | None = None
    config: str | None = None
    """The split and config that the shards are of, if the source has any."""
    stored: pa.Schema | None = None
    """Every column of the files; None for JSON."""

    @property
    def known(self) -> Format:
        """What its rows look like."""
        return FORMATS[self.format]

    @property
    def schema(self) -> pa.Schema:
        """Schema of every table that `read` returns."""
        passed = (field.remove_metadata() for field in self.passthrough)
        return s.scored_schema(passed, self.pair_schema, self.rewards)

    def read(self, shard: Shard) -> pa.Table:
        """The shard's rows, exactly `shard.num_rows` in source order; `shard.digest` is in the schema's metadata.

        A row that yields no pair has status dropped, stage source and a reason. Of its other columns only id, if it has
        one, and place are not null. Scores that are not wanted are null.

        Raises:
            SourceError: the file is corrupt (for Parquet: a page fails its checksum), gone or short.
            IntegrityError: it was replaced since it was planned.
            OSError: the storage failed.
        """
        columns = self.map.reads([*self.columns, *(field.name for field in self.passthrough)])
        columns += self.where.columns if self.where is not None else []
        table = read_rows(self.fs, self.root, shard, tuple(dict.fromkeys(columns)))
        size = shard.num_rows if self.known.whole_files else _PIECE_ROWS
        starts = range(0, shard.num_rows, size)
        pieces = [self._converted(table.slice(first, size), shard, shard.first_row + first) for first in starts]
        return pa.concat_tables(pieces).replace_schema_metadata({s.READ_FROM: shard.digest})

    def _converted(self, table: pa.Table, shard: Shard, first_row: int) -> pa.Table:
        """The pairs of some rows, which stand in the shard's file from `first_row` on."""
        known: dict[str, pa.Array] = {}
        plain: Sequence[int] = ()
        pairs: Mapping[str, Sequence[Any]] = {}
        read: dict[int, Row | Drop] = {}
        left_out = [] if self.sample is None else self.sample.left_out(shard.file, first_row, table.num_rows)
        rows: dict[int, Row | Drop] = dict.fromkeys(left_out, Drop(Reason.BEYOND_LIMIT))
        if shard.kind.is_json:
            wanted = np.setdiff1d(np.arange(table.num_rows), left_out)
            read = dict(
                zip(wanted.tolist(), rows_of_lines(table.take(pa.array(wanted)) if rows else table), strict=True)
            )
            read |= {} if self.where is None else self.where.drops_of_rows(read)
            rows |= {index: row if isinstance(row, Drop) else self.map.of_row(row) for index, row in read.items()}
        else:
            known = {field.name: fitted_column(self.map.column(table, field.name), field) for field in self.passthrough}
            filtered = {} if self.where is None else self.where.drops_of_table(table)
            rows = {**dict.fromkeys(undecodable_rows(known), Drop(Reason.UNDECODABLE_TEXT)), **filtered, **rows}
            table = self.map.of_table(table, self.columns)
            with contextlib.suppress(NotPlain):
                plain, pairs = self._pairs_of_columns(table, unwanted=[*rows])
            others = sorted({*range(table.num_rows)} - {*rows, *plain})
            odd = rows_of_columns(table if len(others) == table.num_rows else table.take(pa.array(others, pa.int64())))
            rows |= zip(others, odd, strict=True)
        known |= {
            s.SOURCE_FILE: pa.repeat(shard.file, table.num_rows),
            s.SOURCE_ROW: pa.array(range(first_row, first_row + table.num_rows)),
        }
        fields = [field for field in self.schema if field.name not in known]
        outcomes = [
            self._outcome(row, f"{shard.file}:{first_row + index}", read.get(index))
            for index, row in self.known.together(rows).items()
        ]
        names = {name for outcome in outcomes for name in outcome}
        own = _table({name: [outcome.get(name) for outcome in outcomes] for name in names}, fields)
        if plain:
            own = pa.concat_tables([_table(pairs, fields), own])
        if rows:
            own = own.take(pa.array(np.argsort([*plain, *rows])))
        if self.benchmarks is not None:
            own = _without_contaminated(own, self.benchmarks)
        kept = pc.equal(own.column(s.STATUS), s.KEPT).to_numpy()
        known |= {field.name: kept_only(known[field.name], kept) for field in self.passthrough if field.name in known}
        arrays = [known[name] if name in known else own.column(name) for name in self.schema.names]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _pairs_of_columns(
        self, table: pa.Table, unwanted: Sequence[int]
    ) -> tuple[Sequence[int], Mapping[str, Sequence[Any]]]:
        """Rows whose pairs can be made of whole columns, and the columns of these pairs, or NotPlain."""
        known = self.known
        if known.layout is None or self.pairs != BEST_WORST or not {s.CHOSEN, s.REJECTED} <= {*self.columns}:
            raise NotPlain
        columns = plain_arrays(table)
        good = np.ones(table.num_rows, np.bool_)
        good[[*unwanted, *undecodable_rows(columns)]] = False
        ids = None if self.id_column is None else columns[self.id_column].cast(pa.string())
        if ids is not None:
            good &= is_true(pc.greater(pc.binary_length(ids), 0))
        scores = column_scores(columns, self.scores, good)
        sides = column_pairs(columns, known.layout, good)
        if known.candidates and self.scores.candidates:
            texts, rewards = (columns[name] for name in known.candidates)
            scores = {**candidate_rewards(texts, rewards, sides, good), **scores}
        rows = np.flatnonzero(good)
        messages = {name: turns.to_messages(rows) for name, turns in sides.items()}
        digests = content_digests(**messages)
        made = {s.ID: ids.take(pa.array(rows)) if ids is not None else digests, s.CONTENT_DIGEST: digests}
        scores = {name: array.take(pa.array(rows)) for name, array in scores.items()}
        return rows.tolist(), {**made, **messages, **scores, s.STATUS: [s.KEPT] * len(rows)}

    def _outcome(self, row: Row | Drop, place: str, read: Row | Drop | None) -> dict[str, Any]:
        """The columns of one row, kept or dropped; its id where it has one. read: a row of JSON as it was read."""
        if isinstance(row, Drop):
            return row.columns
        row_id: str | None = None
        try:
            row_id = None if self.id_column is None else id_of(row.get(self.id_column))
            pair, content = self._content(row)
            row_id = row_id or content[s.CONTENT_DIGEST]
            scores = read_scores(row, pair, self.scores)
            named = {} if not isinstance(read, Mapping) else {f: self.map.value(read, f.name) for f in self.passthrough}
            passed = {field.name: fitted(value, field) for field, value in named.items()}
        except Exception as error:  # noqa: BLE001 - reason_of passes on what is not to be blamed on the row
            return {s.ID: row_id, **Drop(reason_of(error, row_id or place)).columns}
        return {**passed, s.ID: row_id, **content, s.STATUS: s.KEPT, **scores}

    def _content(self, row: Row) -> tuple[PairRow, dict[str, Any]]:
        """The pair of a row, and its columns with their digest. Raises as `Format.convert`."""
        pair = self.known.convert(row, self.pairs)
        check_fields(pair, self.pair_schema)
        digest = content_digest(pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.template_kwargs)
        sides = {s.PROMPT: pair.prompt, s.CHOSEN: pair.chosen, s.REJECTED: pair.rejected}
        return pair, {**sides, s.TOOLS: pair.tools, s.TEMPLATE_KWARGS: pair.template_kwargs, s.CONTENT_DIGEST: digest}


def _table(columns: Mapping[str, Sequence[Any]], fields: Sequence[pa.Field]) -> pa.Table:
    """A table of these fields; a column that is not there is null."""
    num_rows = len(next(iter(columns.values()), ()))
    arrays = [
        _array(columns[field.name], field.type) if field.name in columns else pa.nulls(num_rows, field.type)
        for field in fields
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _without_contaminated(pairs: pa.Table, benchmarks: Contamination) -> pa.Table:
    """The pairs; those with a prompt of a benchmark as dropped rows."""
    prompts = enumerate(pairs.column(s.PROMPT).to_pylist())
    hit = [row for row, prompt in prompts if prompt is not None and benchmarks.hits_prompt(prompt)]
    if not hit:
        return pairs
    outcome = {name: [value] * len(hit) for name, value in Drop(Reason.CONTAMINATED).columns.items()}
    dropped = _table({s.ID: pairs.column(s.ID).take(pa.array(hit)).combine_chunks(), **outcome}, [*pairs.schema])
    places = np.arange(pairs.num_rows)
    places[hit] = pairs.num_rows + np.arange(len(hit))
    return pa.concat_tables([pairs, dropped]).take(pa.array(places))


def _array(values: Sequence[Any] | pa.Array, kind: pa.DataType) -> pa.Array:
    """Values as an array of this type. Messages that lack fields of the type get nulls there."""
    if not isinstance(values, pa.Array):
        return pa.array(values, kind)
    return values if values.type == kind else values.cast(kind)
