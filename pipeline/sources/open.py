"""Check a whole source and make its reader: everything that can fail for all of it fails here, before anything runs."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from pipeline import schema as s
from pipeline.config import Source
from pipeline.drops import Drop
from pipeline.errors import ConfigError, SourceError
from pipeline.shown import shown_path
from pipeline.sources.beside_text import sampled_pairs, source_schema
from pipeline.sources.columns import check_id_column
from pipeline.sources.contamination import Contamination
from pipeline.sources.drift import check_files_agree
from pipeline.sources.files import ignored_text, scan_files
from pipeline.sources.formats import FORMATS, check_format_name, resolve_format, sample_rows, unread
from pipeline.sources.left_out import Condition, Sample
from pipeline.sources.oddities import json_problem
from pipeline.sources.passthrough import passthrough_fields
from pipeline.sources.reader import PairReader
from pipeline.sources.rows import BESIDE_PAIR, BEST_WORST, Pairs
from pipeline.sources.scores import plan_scores
from pipeline.sources.shards import SourceFile, plan_shards
from pipeline.sources.splits import Wanted

_log = logging.getLogger(__name__)
_READ_ROWS: Final = 4096


def open_source(
    fs: Any,
    root: str,
    source: Source,
    *,
    rewards: bool | Mapping[str, bool],
    policy_logps: bool,
    reference_logps: bool,
) -> tuple[PairReader, list[SourceFile]]:
    """Check the whole source and make its reader; the flags say which scores it must hold itself.

    rewards: for several rewards the flag of each, by name.

    Raises:
        ConfigError: `source.format` is unknown, `source.pairs` does not fit the format or the wanted scores, or
            `source.where` does not fit its columns.
        SourceError: bad files, no rows, or a format that cannot be told.
        SchemaError: the format, the id, a passthrough column or a wanted score lacks its column.
        OSError: the storage failed.
    """
    check_format_name(source.format)
    several = {} if isinstance(rewards, bool) else rewards
    scan = scan_files(fs, root, Wanted(split=source.split, config=source.config))
    if scan.part.split is not None:
        _log.info("source %s: reads split %s", shown_path(root), scan.part.text())
    if scan.ignored:
        _log.warning("source %s: ignored %s", shown_path(root), ignored_text(scan.ignored))
    named = [name for name, is_held in several.items() if is_held]
    sample = sample_rows(fs, scan, source, rewards=[column for name in named for column in s.reward_columns(name)])
    if sample.rows and not sample.decoded:
        reasons = ", ".join(sorted({str(row.reason) for row in sample.rows if isinstance(row, Drop)}))
        raise SourceError(
            f"source {shown_path(root)}: none of the first {len(sample.rows)} rows of {shown_path(scan.files[0].path)} "
            f"can be decoded ({reasons}). Give files of the kind their names tell."
        )
    name = resolve_format(source.format, sample.columns, sample.decoded, sample.paths)
    for line in unread(name, sample.columns):
        _log.warning("source %s: %s", shown_path(root), line)
    if source.limit is not None and FORMATS[name].whole_files:
        raise ConfigError(
            f"source {shown_path(root)}: a limit or weight takes rows one by one, and would part the answers of a "
            f"prompt, which format {name} reads together. Leave it out, or write pairs first."
        )
    _check_pairs(source.pairs, name, others=policy_logps or reference_logps or bool(named))
    if source.id_column is not None:
        check_id_column(source.id_column, sample.columns, sample.schema)
    values = [{name: sample.map.value(row, name) for name in source.passthrough} for row in sample.read]
    own_names = [name for row in sample.read for name in row]
    names = dict.fromkeys([*sample.columns, *own_names] if sample.schema is None else sample.schema.names)
    passthrough = passthrough_fields(source.passthrough, sample.schema, [*names], values)
    where = None
    if source.where is not None:
        where = Condition.of(source.where, sample.schema, sample.map.names([*names]), sample.read, sample.map)
    scores = plan_scores(
        sample.columns,
        FORMATS[name],
        rewards=rewards is True,
        policy_logps=policy_logps,
        reference_logps=reference_logps,
        named=named,
    )
    check_files_agree(
        fs,
        sample,
        FORMATS[name],
        scores=scores.needs,
        id_column=source.id_column,
        passthrough=[
            *(column for name in source.passthrough for column in sample.map.reads([name])),
            *(where.columns if where is not None else ()),
        ],
    )
    wanted = {*FORMATS[name].reads, *BESIDE_PAIR, *scores.reads, source.id_column}
    columns = tuple(column for column in sample.columns if column in wanted)
    sampled = list(sampled_pairs(FORMATS[name], sample.decoded))
    problem = json_problem(sampled)
    if problem is not None:
        _log.warning("source %s: %s", shown_path(root), problem)
    fields = frozenset[str]().union(*(file.message_fields for file in scan.files))
    pair = source_schema(sample.schema, columns, sampled, fields)
    s.scored_schema(passthrough, pair, tuple(several) or ("",))  # refuses names that alignpot's own columns have
    reader = PairReader(
        fs=fs,
        root=scan.root,
        format=name,
        id_column=source.id_column,
        passthrough=passthrough,
        scores=scores,
        rewards=tuple(several) or ("",),
        pairs=source.pairs,
        pair_schema=pair,
        columns=columns,
        map=sample.map,
        sample=None if source.limit is None else Sample.of(scan.files, source.limit, source.seed),
        where=where,
        split=scan.part.split,
        config=scan.part.config,
        stored=scan.schema,
    )
    return reader, [replace(file, is_one_shard=FORMATS[name].whole_files) for file in scan.files]


def read_all(fs: Any, root: str, source: Source, benchmarks: Contamination | None = None) -> pa.Table:
    """All rows of a source as pairs, dropped ones too, in memory. Raises as `open_source`."""
    reader, files = open_source(fs, root, source, rewards=False, policy_logps=False, reference_logps=False)
    reader = replace(reader, benchmarks=benchmarks)
    tables = [reader.read(shard) for shard in plan_shards(files, _READ_ROWS)]
    return pa.concat_tables(table.replace_schema_metadata(None) for table in tables)


def _check_pairs(pairs: Pairs, name: str, *, others: bool) -> None:
    if pairs == BEST_WORST:
        return
    if FORMATS[name].build_sweet_spot is None:
        known = ", ".join(name for name, known in FORMATS.items() if known.build_sweet_spot is not None)
        raise ConfigError(
            f"source.pairs {pairs} picks from candidates with rewards, which a source of format {name} does not hold. "
            f"Give one of format {known}, or leave out source.pairs."
        )
    if others:
        raise ConfigError(
            f"source.pairs {pairs} picks pairs anew, so log-probabilities and rewards of names that the source holds "
            "are not theirs. Set models instead of backend columns, or leave out source.pairs."
        )
