"""What a source is, for people: format, columns, shapes and lengths of its pairs, and what would be dropped.

Holds counts, names and types only, and the text of a row only where examples are asked for.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pyarrow as pa

from pipeline.config import Source
from pipeline.drops import Drop, share_of_faults
from pipeline.errors import SchemaError, SourceError
from pipeline.schema import CHOSEN, ID, NUM_TOKENS_PROMPT, PROMPT, REJECTED, REWARD_CHOSEN, REWARD_REJECTED, TRUNCATED
from pipeline.sources.columns import Columns, Kind, Row
from pipeline.sources.drift import check_files_agree
from pipeline.sources.files import ignored_text, scan_files
from pipeline.sources.formats import AUTO, FORMATS, Sample, check_format_name, resolve_format, unread
from pipeline.sources.formats import sample_rows as rows_sampled
from pipeline.sources.left_out import Condition
from pipeline.sources.naming import roles_to_name
from pipeline.sources.oddities import oddities
from pipeline.sources.rows import PLAIN_KEYS, PairRow, Turn, content_digest, reason_of
from pipeline.sources.scores import (
    ALL_SCORE_COLUMNS,
    NO_SCORES,
    POLICY_LOGPS,
    REFERENCE_LOGPS,
    RESPONSE_COUNTS,
    ScorePlan,
    plan_scores,
    read_scores,
)
from pipeline.sources.splits import Wanted
from pipeline.sources.turns import SYSTEM_ROLES, id_of

_DIALOGUES_BESIDE_TEXT: Final = frozenset({"binarized", "candidates", "responses", "judged"})
_NO_REWARDS: Final = frozenset({*POLICY_LOGPS, *REFERENCE_LOGPS, *RESPONSE_COUNTS, NUM_TOKENS_PROMPT, TRUNCATED})


class Figures(NamedTuple):
    """Spread of a count over the sampled pairs; p95 is the least value that 95% do not exceed."""

    least: int
    median: int
    p95: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Findings about a source and the pairs of its first rows."""

    root: str
    format: str | None
    """None: no format was found, so that no run can read the source."""
    decided: str
    """How the format was decided."""
    split: str | None
    """The split that was looked at; None if the source has none. The figures are of this split alone."""
    config: str | None
    splits: Mapping[str, int]
    """Files of each split."""
    configs: tuple[str, ...]
    part: str
    """What is read and what is not, in words; empty without splits."""
    num_files: int
    num_rows: int
    num_bytes: int
    file_kinds: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """Name and type; in JSON and CSV the kind seen in the sample."""
    num_sampled: int
    num_pairs: int
    num_with_system: int
    num_with_tools: int
    num_with_fields: int
    """Pairs whose messages hold tool calls, reasoning or the like."""
    num_turns: Mapping[str, Figures]
    """By side of the sampled pairs: prompt, chosen, rejected. Empty without pairs."""
    num_chars: Mapping[str, Figures]
    """The same for the characters of all turns of a side together."""
    drop_reasons: Mapping[str, int]
    score_columns: tuple[str, ...]
    ignored: tuple[str, ...]
    """Files of no known extension, by relative path."""
    problems: tuple[str, ...]
    num_tokens: Mapping[str, Figures] = field(default_factory=dict)
    """As num_chars, by the tokenizer that was given."""
    examples: tuple[Mapping[str, Any], ...] = ()
    """The first pairs, if they were asked for: id, prompt, chosen, rejected, and rewards or null."""

    @property
    def share_dropped(self) -> float:
        """Share of the sampled rows that give no pair, see `drops.share_of_faults`; all of them without a format."""
        return share_of_faults(self.drop_reasons, self.num_sampled) if self.format else 1.0


def inspect_source(
    fs: Any,
    root: str,
    source: Source | None = None,
    *,
    sample_rows: int = 1000,
    num_examples: int = 0,
    count_tokens: Callable[[str], int] | None = None,
) -> Inspection:
    """Look at the files of the wanted part of a source, and at its first `sample_rows` rows.

    source: how to read it. num_examples: pairs whose text the inspection holds. count_tokens: tokens of a text.

    A format that cannot be told, or scores that cannot be used, are problems of the inspection, not errors. Rows are
    dropped as in a run that takes every score it finds from the columns.

    Raises:
        ConfigError: no such format.
        SourceError: bad files, or no rows.
        OSError: the storage failed.
    """
    source = Source(path=root) if source is None else source
    check_format_name(source.format)
    scan = scan_files(fs, root, Wanted(split=source.split, config=source.config))
    head = rows_sampled(fs, scan, source)
    problems: list[str] = []
    name, plan, whole_file = None, NO_SCORES, False
    try:
        name = resolve_format(source.format, head.columns, head.decoded, head.paths)
        whole_file = FORMATS[name].whole_files
    except (SourceError, SchemaError) as error:
        problems.append(str(error))
    num_rows = scan.num_rows if whole_file else sample_rows
    sample = rows_sampled(fs, scan, source, num_rows=num_rows, first_file_only=whole_file)
    if name is not None:
        try:
            plan = _score_plan(_with_values(head.columns, sample.decoded), name)
            check_files_agree(fs, head, FORMATS[name], scores=plan.needs)
        except (SourceError, SchemaError) as error:
            problems.append(str(error))
        problems += unread(FORMATS[name], head.columns)
    if scan.ignored:
        problems.append(f"ignored {ignored_text(scan.ignored)}")
    rows = sample.rows if source.where is None else _left_out(source.where, sample)
    found, drops, num_unlike = _pairs(name, rows, plan, source.id_column)
    pairs = [each.pair for each in found]
    if num_unlike:
        problems.append(f"in {num_unlike:,} sampled rows the prompt text is no turn of the dialogues (trusted)")
    if name is not None and not pairs:
        problems.append("no row of the sample yields a pair")
    roles = roles_to_name(sample.decoded, () if name is None else FORMATS[name].reads)
    if roles:
        problems.append(roles)
    digests = {content_digest(p.prompt, p.chosen, p.rejected, p.tools, p.template_kwargs) for p in pairs}
    num_repeated = len(pairs) - len(digests)
    if num_repeated:
        problems.append(f"{num_repeated:,} pairs of the sample repeat an earlier one")
    problems += oddities(pairs)
    columns = {name: str(sample.paths.get(name, Kind.OTHER)) for row in sample.read for name in row}
    if scan.schema is not None:
        columns = {column.name: str(column.type) for column in scan.schema}
    return Inspection(
        root=root,
        format=name,
        decided="set by source.format" if source.format != AUTO else f"from the columns and {len(head.rows)} rows",
        split=scan.part.split,
        config=scan.part.config,
        splits=dict(scan.part.splits),
        configs=tuple(scan.part.configs),
        part=scan.part.text(),
        num_files=len(scan.files),
        num_rows=scan.num_rows,
        num_bytes=sum(file.size for file in scan.files),
        file_kinds=tuple(sorted({str(file.kind) for file in scan.files})),
        columns=tuple(columns.items()),
        num_sampled=len(sample.rows),
        num_pairs=len(pairs),
        num_with_system=sum(any(turn["role"] in SYSTEM_ROLES for turn in pair.prompt) for pair in pairs),
        num_with_tools=sum(pair.tools is not None for pair in pairs),
        num_with_fields=sum(not all(turn.keys() <= PLAIN_KEYS for turn in _turns(pair)) for pair in pairs),
        num_turns=_figures(pairs, len),
        num_chars=_figures(pairs, lambda turns: len(_text_of(turns))),
        num_tokens={} if count_tokens is None else _figures(pairs, lambda turns: count_tokens(_text_of(turns))),
        examples=tuple(each.shown() for each in found[:num_examples]),
        drop_reasons=dict(sorted(drops.items())),
        score_columns=_score_columns(_with_values(sample.columns, sample.decoded), name),
        ignored=scan.ignored,
        problems=tuple(problems),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A pair of the sample, its id and its scores."""

    id: str
    pair: PairRow
    scores: Mapping[str, Any]

    def shown(self) -> Mapping[str, Any]:
        rewards = {name: self.scores.get(name) for name in (REWARD_CHOSEN, REWARD_REJECTED)}
        return {ID: self.id, **{side: list(getattr(self.pair, side)) for side in (PROMPT, CHOSEN, REJECTED)}, **rewards}


def _pairs(
    name: str | None, rows: Iterable[Row | Drop], plan: ScorePlan, id_column: str | None
) -> tuple[Sequence[_Found], Counter[str], int]:
    """The pairs of sampled rows, drops by reason, and how many pairs disagree with their row's prompt text."""
    found: list[_Found] = []
    drops: Counter[str] = Counter()
    num_unlike = 0
    grouped = dict(enumerate(rows))
    for row in (grouped if name is None else FORMATS[name].together(grouped)).values():
        if isinstance(row, Drop):
            drops[str(row.reason)] += 1
        elif name is not None:
            try:
                pair = FORMATS[name].convert(row)
                scores = read_scores(row, pair, plan)
                digest = content_digest(pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.template_kwargs)
                id_ = digest if id_column is None else id_of(row.get(id_column))
            except Exception as error:  # noqa: BLE001 - reason_of passes on what is not to be blamed on the row
                drops[str(reason_of(error, "of the sample"))] += 1
                continue
            found.append(_Found(id_, pair, scores))
            text = row.get(PROMPT) if name in _DIALOGUES_BESIDE_TEXT else None
            num_unlike += isinstance(text, str) and all(turn.get("content") != text for turn in pair.prompt)
    return found, drops, num_unlike


def _left_out(where: str, sample: Sample) -> list[Row | Drop]:
    """The sampled rows, those that `source.where` leaves out as dropped."""
    places = [place for place, row in enumerate(sample.rows) if not isinstance(row, Drop)]
    names = dict.fromkeys(name for row in sample.read for name in row)
    condition = Condition.of(where, sample.schema, sample.map.names([*names]), sample.read, sample.map)
    if sample.schema is None:
        drops = condition.drops_of_rows(dict(enumerate(sample.read)))
    else:
        types = pa.schema([sample.schema.field(column) for column in condition.columns])
        drops = condition.drops_of_table(pa.Table.from_pylist(list(sample.read), schema=types))
    of_place = {places[index]: drop for index, drop in drops.items()}
    return [of_place.get(place, row) for place, row in enumerate(sample.rows)]


def _text_of(turns: Iterable[Turn]) -> str:
    return "".join(turn.get("content") or "" for turn in turns)


def _turns(pair: PairRow) -> Iterable[Turn]:
    return (*pair.prompt, *pair.chosen, *pair.rejected)


def _figures(pairs: Sequence[PairRow], count: Callable[[Sequence[Turn]], int]) -> dict[str, Figures]:
    """Spread of a count of turns over the pairs, by side; empty without pairs."""
    figures = {}
    for side in (PROMPT, CHOSEN, REJECTED) if pairs else ():
        counts = sorted(count(getattr(pair, side)) for pair in pairs)
        last = len(counts) - 1
        p95 = counts[-(-len(counts) * 95 // 100) - 1]
        figures[side] = Figures(least=counts[0], median=counts[last // 2], p95=p95, most=counts[last])
    return figures


def _score_plan(columns: Columns, name: str) -> ScorePlan:
    """The scores of a run that reads every score that the table has."""
    found = {*_score_columns(columns, name)}
    return plan_scores(
        columns,
        FORMATS[name],
        rewards=bool(found - _NO_REWARDS),
        policy_logps=found >= {*POLICY_LOGPS, *RESPONSE_COUNTS},
        reference_logps=found >= {*REFERENCE_LOGPS},
    )


def _with_values(columns: Columns, rows: Sequence[Row]) -> Columns:
    """The columns; those that have no value in any of the rows are of kind null."""
    seen = {name for row in rows for name, value in row.items() if value is not None}
    return {name: kind if name in seen else Kind.NULL for name, kind in columns.items()}


def _score_columns(columns: Columns, name: str | None) -> tuple[str, ...]:
    wanted = {Kind.NUMBER, Kind.NUMBERS, Kind.FLAG}
    scores = [column for column in ALL_SCORE_COLUMNS if columns.get(column) in wanted]
    return tuple(dict.fromkeys([*scores, *(FORMATS[name].rewarded_by(columns) if name else ())]))
