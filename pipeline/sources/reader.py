"""From a shard of the source to a table of pairs: one row out for each row in, in the same order.

`open_source` does everything that can fail for the whole source before anything runs: files, format, columns.
After that a `PairReader` raises only for a file that is corrupt or has changed; a malformed row is a dropped row.
"""

import logging
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline import schema as s
from pipeline.config import Source
from pipeline.drops import Drop, DropRow, Reason
from pipeline.errors import ConfigError, SchemaError, SourceError
from pipeline.shown import shown_path
from pipeline.sources.blocks import Span, read_span
from pipeline.sources.columns import plain_type
from pipeline.sources.decode import Sample, rows_of_columns, rows_of_lines, sample_rows
from pipeline.sources.detect import SAMPLE_ROWS, resolve_format
from pipeline.sources.files import SourceFile, SourceScan, ignored_text, scan_files
from pipeline.sources.formats import FORMATS, check_format_name
from pipeline.sources.ids import content_digest
from pipeline.sources.passthrough import fitted, kept_only, passthrough_fields, plain_columns, undecodable_rows
from pipeline.sources.rows import BEST_WORST, Pairs, Row, reason_of
from pipeline.sources.scores import NO_SCORES, ScorePlan, plan_scores, read_scores
from pipeline.sources.shards import Shard, plan_shards
from pipeline.sources.turns import text_of

_log = logging.getLogger(__name__)
_READ_ROWS: Final = 4096

"""Value of drop_stage for rows that are dropped here."""


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
    pairs: Pairs = BEST_WORST
    columns: tuple[str, ...] = ()
    """Columns to read from Parquet and Arrow, those of `passthrough` left out."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of every table that `read` returns."""
        return s.scored_schema(field.remove_metadata() for field in self.passthrough)

    def read(self, shard: Shard) -> pa.Table:
        """The shard's rows, exactly `shard.num_rows` in source order; `shard.digest` is in the schema's metadata.

        A row that yields no pair has status dropped, stage source, a reason, and nulls but for its id (where it has
        one) and its place. Scores that are not wanted are null.

        Raises:
            SourceError: the file is corrupt (for Parquet: a page fails its checksum), gone or short.
            IntegrityError: it was replaced since it was planned.
            OSError: the storage failed.
        """
        span = Span(
            path=posixpath.join(self.root, shard.file),
            kind=shard.kind,
            first_row=shard.first_row,
            num_rows=shard.num_rows,
            mark=shard.mark,
            digest=shard.digest,
            state=shard.state,
            columns=tuple(dict.fromkeys([*self.columns, *(field.name for field in self.passthrough)])),
        )
        table = read_span(self.fs, span, shown=shown_path(shard.file))
        if shard.kind.is_json:
            rows = rows_of_lines(table)
            return self._table([self._outcome(row, shard, i, fit=True) for i, row in enumerate(rows)], shard, None)
        passed = plain_columns(table, self.passthrough)
        rows = rows_of_columns(table, self.columns)
        for index in undecodable_rows(passed):
            rows[index] = Drop(Reason.UNDECODABLE_TEXT)
        return self._table([self._outcome(row, shard, i, fit=False) for i, row in enumerate(rows)], shard, passed)

    def _outcome(
        self, row: Row | Drop, shard: Shard, offset: int, *, fit: bool
    ) -> dict[str, Any] | tuple[Drop, str | None]:
        """The columns of a kept row, or why it is dropped, with its id where it has one."""
        if isinstance(row, Drop):
            return row, None
        row_id: str | None = None
        try:
            row_id = None if self.id_column is None else id_of(row.get(self.id_column))
            pair = FORMATS[self.format].convert(row, self.pairs)
            if isinstance(pair, Drop):
                return pair, row_id
            digest = content_digest(pair.prompt, pair.chosen, pair.rejected, pair.tools)
            row_id = row_id or digest
            scores = read_scores(row, pair, self.scores)
            if isinstance(scores, Drop):
                return scores, row_id
            passed = {field.name: fitted(row, field) for field in self.passthrough} if fit else {}
        except Exception as error:  # noqa: BLE001 - reason_of passes on what is not to be blamed on the row
            place = f"{shard.file}:{shard.first_row + offset}"
            return Drop(reason_of(error, row_id or place)), row_id
        own = {s.ID: row_id, s.PROMPT: pair.prompt, s.CHOSEN: pair.chosen, s.REJECTED: pair.rejected}
        return {**passed, **own, s.TOOLS: pair.tools, s.CONTENT_DIGEST: digest, s.STATUS: s.KEPT, **scores}

    def _table(
        self,
        outcomes: Sequence[dict[str, Any] | tuple[Drop, str | None]],
        shard: Shard,
        passed: dict[str, pa.Array] | None,
    ) -> pa.Table:
        drops = [None if isinstance(outcome, dict) else outcome[0] for outcome in outcomes]
        rows: list[dict[str, Any]] = []
        for offset, outcome in enumerate(outcomes):
            place = {s.SOURCE_FILE: shard.file, s.SOURCE_ROW: shard.first_row + offset}
            if isinstance(outcome, dict):
                rows.append({**outcome, **place})
            else:
                drop, row_id = outcome
                rows.append({s.ID: row_id, **drop.columns, **place})
        schema, arrays = self.schema, []
        for field in schema:
            if passed is not None and field.name in passed:
                arrays.append(kept_only(passed[field.name], drops))
            else:
                arrays.append(pa.array([row.get(field.name) for row in rows], field.type))
        return pa.Table.from_arrays(arrays, schema=schema.with_metadata({s.READ_FROM: shard.digest}))


def open_source(
    fs: Any, root: str, source: Source, *, rewards: bool, policy_logps: bool, reference_logps: bool
) -> tuple[PairReader, list[SourceFile]]:
    """Check the whole source and make its reader; the flags say which scores it must hold itself.

    Raises:
        ConfigError: `source.format` is unknown, or `source.pairs` does not fit the format or the wanted scores.
        SourceError: bad files, no rows, or a format that cannot be told.
        SchemaError: the format, the id, a passthrough column or a wanted score lacks its column.
        OSError: the storage failed.
    """
    check_format_name(source.format)
    scan = scan_files(fs, root)
    if scan.ignored:
        _log.warning("source %s: ignored %s", shown_path(root), ignored_text(scan.ignored))
    sample = _decoded_sample(fs, root, scan)
    name = resolve_format(source.format, sample.columns, sample.decoded)
    _check_pairs(source.pairs, name, logps=policy_logps or reference_logps)
    if source.id_column is not None:
        check_id_column(source.id_column, scan, sample)
    passthrough = passthrough_fields(source.passthrough, scan.schema, [*sample.columns], sample.decoded)
    scores = plan_scores(
        sample.columns, name, rewards=rewards, policy_logps=policy_logps, reference_logps=reference_logps
    )
    wanted = {*FORMATS[name].reads, *scores.reads, source.id_column}
    reader = PairReader(
        fs=fs,
        root=scan.root,
        format=name,
        id_column=source.id_column,
        passthrough=passthrough,
        scores=scores,
        pairs=source.pairs,
        columns=tuple(column for column in sample.columns if column in wanted),
    )
    s.scored_schema(passthrough)
    return reader, list(scan.files)


def read_all(fs: Any, root: str, source: Source) -> pa.Table:
    """All rows of a source as pairs, dropped ones too, in memory. Raises as `open_source`."""
    reader, files = open_source(fs, root, source, rewards=False, policy_logps=False, reference_logps=False)
    tables = [reader.read(shard) for shard in plan_shards(files, _READ_ROWS)]
    return pa.concat_tables(table.replace_schema_metadata(None) for table in tables)


def _decoded_sample(fs: Any, root: str, scan: SourceScan) -> Sample:
    sample = sample_rows(fs, scan, SAMPLE_ROWS, first_file_only=True)
    if not sample.decoded:
        raise SourceError(
            f"source {shown_path(root)}: none of the first {len(sample.rows)} rows of {shown_path(scan.files[0].path)} "
            f"can be decoded ({_reasons(sample)}). Give files of the kind their names tell."
        )
    return sample


def _check_pairs(pairs: Pairs, name: str, *, logps: bool) -> None:
    if pairs == BEST_WORST:
        return
    if FORMATS[name].build_sweet_spot is None:
        known = ", ".join(name for name, known in FORMATS.items() if known.build_sweet_spot is not None)
        raise ConfigError(
            f"source.pairs {pairs} picks from candidates with rewards, which a source of format {name} does not hold. "
            f"Give one of format {known}, or leave out source.pairs."
        )
    if logps:
        raise ConfigError(
            f"source.pairs {pairs} picks pairs anew, so log-probabilities that the source holds are not theirs. "
            "Set a model as policy and reference instead of backend columns, or leave out source.pairs."
        )


def check_id_column(name: str, scan: SourceScan, sample: Sample) -> None:
    """Raise a SchemaError unless the source has a column of this name that can hold ids."""
    if name not in sample.columns:
        raise SchemaError(
            f"source.id_column {name!r} is not there; the source has {[*sample.columns]}. "
            "Name a column with unique ids, or leave it out to use a hash of the content."
        )
    if scan.schema is None:
        return
    plain = plain_type(scan.schema.field(name).type)
    if not (pa.types.is_string(plain) or pa.types.is_integer(plain) or pa.types.is_null(plain)):
        raise SchemaError(f"source.id_column {name!r} is {plain}; wanted text or whole numbers.")


def id_of(value: Any) -> str:
    """The id that a row gives itself, or DropRow."""
    if value is None or value == "":
        raise DropRow(Reason.NULL_ID)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DropRow(Reason.ID_TYPE)
    return text_of(str(value))


def _reasons(sample: Sample) -> str:
    return ", ".join(sorted({str(row.reason) for row in sample.rows if isinstance(row, Drop)}))
