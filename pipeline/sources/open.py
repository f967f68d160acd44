"""Check a whole source and make its reader: everything that can fail for all of it fails here, before anything runs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from pipeline import schema as s
from pipeline.config import Source
from pipeline.drops import Drop
from pipeline.errors import ConfigError, SchemaError, SourceError
from pipeline.shown import shown_path
from pipeline.sources.beside_text import sampled_pairs, source_schema
from pipeline.sources.columns import check_id_column, described
from pipeline.sources.contamination import Contamination
from pipeline.sources.drift import check_files_agree
from pipeline.sources.files import ignored_text, scan_files
from pipeline.sources.formats import FORMATS, check_format_name, resolve_format, sample_rows, unread
from pipeline.sources.formats import Sample as SourceSample
from pipeline.sources.left_out import Condition, Sample
from pipeline.sources.oddities import json_problem
from pipeline.sources.passthrough import passthrough_fields
from pipeline.sources.reader import PairReader
from pipeline.sources.responses import RESPONSES, ResponseReader
from pipeline.sources.rows import BESIDE_PAIR, BEST_WORST, Format, Pairs
from pipeline.sources.scores import NO_SCORES, ScorePlan, plan_scores
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
    named = [name for name, is_held in several.items() if is_held]
    sample = _sampled(fs, root, source, rewards=[column for name in named for column in s.reward_columns(name)])
    known = FORMATS[resolve_format(source.format, sample.columns, sample.decoded, sample.paths)]
    if source.limit is not None and known.whole_files:
        raise ConfigError(
            f"source {shown_path(root)}: a limit or weight takes rows one by one, and would part the answers of a "
            f"prompt, which format {known.name} reads together. Leave it out, or write pairs first."
        )
    _check_pairs(source.pairs, known.name, others=policy_logps or reference_logps or bool(named))
    scores = plan_scores(
        sample.columns,
        known,
        rewards=rewards is True,
        policy_logps=policy_logps,
        reference_logps=reference_logps,
        named=named,
    )
    found = _checked(fs, root, source, sample, known, scores)
    names = tuple(several) or ("",)
    s.scored_schema(found["passthrough"], found["pair_schema"], names)  # refuses names that our own columns have
    reader = PairReader(**found, scores=scores, rewards=names, pairs=source.pairs)
    return reader, [replace(file, is_one_shard=known.whole_files) for file in sample.scan.files]


def open_responses(
    fs: Any, root: str, source: Source, *, rewards: Sequence[str] = ("",)
) -> tuple[ResponseReader, list[SourceFile]]:
    """The same for a source of prompts with their responses, each of which is to get rewards of these names."""
    sample = _sampled(fs, root, source)
    missing = RESPONSES.lacks(sample.columns)
    if missing:
        pairs = {s.CHOSEN, s.REJECTED} <= sample.columns.keys()
        remedy = (
            "It holds pairs: `alignpot score` with a reward and no policy gives both answers of each pair a reward."
            if pairs
            else "Name the columns, such as source.columns: {prompt: question, response: text}."
        )
        raise SchemaError(
            f"source {shown_path(root)} lacks {', '.join(missing)}; it has {described(sample.columns)}. {remedy}"
        )
    reader = ResponseReader(**_checked(fs, root, source, sample, RESPONSES, NO_SCORES), rewards=tuple(rewards))
    taken = sorted({field.name for field in reader.passthrough} & {*reader.schema.names[: -len(reader.passthrough)]})
    if reader.passthrough and taken:
        raise SchemaError(
            f"source.passthrough names {taken}, which alignpot writes itself. Leave them out, or rename the columns in "
            "the source."
        )
    return reader, list(sample.scan.files)


def _sampled(fs: Any, root: str, source: Source, rewards: Sequence[str] = ()) -> SourceSample:
    """The files and the first rows of a source, of which some can be decoded. rewards: further columns of rewards."""
    scan = scan_files(fs, root, Wanted(split=source.split, config=source.config))
    if scan.part.split is not None:
        _log.info("source %s: reads split %s", shown_path(root), scan.part.text())
    if scan.ignored:
        _log.warning("source %s: ignored %s", shown_path(root), ignored_text(scan.ignored))
    sample = sample_rows(fs, scan, source, rewards=rewards)
    if sample.rows and not sample.decoded:
        reasons = ", ".join(sorted({str(row.reason) for row in sample.rows if isinstance(row, Drop)}))
        raise SourceError(
            f"source {shown_path(root)}: none of the first {len(sample.rows)} rows of {shown_path(scan.files[0].path)} "
            f"can be decoded ({reasons}). Give files of the kind their names tell."
        )
    return sample


def _checked(
    fs: Any, root: str, source: Source, sample: SourceSample, known: Format, scores: ScorePlan
) -> dict[str, Any]:
    """Fields of the reader of a source of this format, all of whose files were checked."""
    scan = sample.scan
    for line in unread(known, sample.columns):
        _log.warning("source %s: %s", shown_path(root), line)
    if source.id_column is not None:
        check_id_column(source.id_column, sample.columns, sample.schema)
    values = [{name: sample.map.value(row, name) for name in source.passthrough} for row in sample.read]
    own_names = [name for row in sample.read for name in row]
    names = dict.fromkeys([*sample.columns, *own_names] if sample.schema is None else sample.schema.names)
    passthrough = passthrough_fields(source.passthrough, sample.schema, [*names], values)
    where = None
    if source.where is not None:
        where = Condition.of(source.where, sample.schema, sample.map.names([*names]), sample.read, sample.map)
    check_files_agree(
        fs,
        sample,
        known,
        scores=scores.needs,
        id_column=source.id_column,
        passthrough=[
            *(column for name in source.passthrough for column in sample.map.reads([name])),
            *(where.columns if where is not None else ()),
        ],
    )
    wanted = {*known.reads, *BESIDE_PAIR, *scores.reads, source.id_column}
    columns = tuple(column for column in sample.columns if column in wanted)
    sampled = list(sampled_pairs(known, sample.decoded))
    problem = json_problem(sampled)
    if problem is not None:
        _log.warning("source %s: %s", shown_path(root), problem)
    named = frozenset[str]().union(*(file.message_fields for file in scan.files))
    return {
        "fs": fs,
        "root": scan.root,
        "format": known.name,
        "id_column": source.id_column,
        "passthrough": passthrough,
        "pair_schema": source_schema(sample.schema, columns, sampled, named),
        "columns": columns,
        "map": sample.map,
        "sample": None if source.limit is None else Sample.of(scan.files, source.limit, source.seed),
        "where": where,
        "split": scan.part.split,
        "config": scan.part.config,
        "stored": scan.schema,
    }


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
