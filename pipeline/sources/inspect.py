"""What a source is, for people: format, columns, shapes and lengths of its pairs, and what would be dropped.

Shows counts, names and types only, never the text of a row.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.drops import Drop
from pipeline.errors import SchemaError, SourceError
from pipeline.schema import NUM_TOKENS_PROMPT, TRUNCATED
from pipeline.shown import shown, shown_path
from pipeline.sources.columns import Columns, Kind
from pipeline.sources.decode import Sample
from pipeline.sources.decode import sample_rows as rows_sampled
from pipeline.sources.files import ignored_text, scan_files
from pipeline.sources.formats import AUTO, FORMATS, SAMPLE_ROWS, check_format_name, resolve_format
from pipeline.sources.ids import content_digest
from pipeline.sources.rows import PairRow, Row, Turn, reason_of
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
from pipeline.sources.turns import SYSTEM_ROLES

_LONGEST_TYPE: Final = 400
_DIALOGUES_BESIDE_TEXT: Final = frozenset({"binarized", "candidates", "responses", "judged"})
_NO_REWARDS: Final = frozenset({*POLICY_LOGPS, *REFERENCE_LOGPS, *RESPONSE_COUNTS, NUM_TOKENS_PROMPT, TRUNCATED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Spread of a count over the sampled pairs; p95 is the least value that 95% do not exceed."""

    least: int
    median: int
    p95: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFigures:
    """Shapes of the sampled pairs, by side: prompt, chosen, rejected. Without pairs the two tables are empty."""

    num_pairs: int
    num_with_system: int
    num_with_tools: int
    turns: Mapping[str, Figures]
    chars: Mapping[str, Figures]
    """Characters of all turns together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Findings about a source and the pairs of its first rows."""

    root: str
    format: str | None
    decided: str
    """How the format was decided."""
    num_files: int
    num_rows: int
    num_bytes: int
    file_kinds: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """Name and type; for JSON Lines the kind seen in the sample."""
    num_sampled: int
    pairs: PairFigures
    drop_reasons: Mapping[str, int]
    score_columns: tuple[str, ...]
    ignored: tuple[str, ...]
    """Files of no known extension, by relative path."""
    problems: tuple[str, ...]

    @property
    def readable(self) -> bool:
        """Whether a format was found, without which no run can read the source."""
        return self.format is not None


def inspect_source(fs: Any, root: str, format: str = AUTO, sample_rows: int = 1000) -> Inspection:  # noqa: A002
    """Look at a source's files and its first `sample_rows` rows.

    A format that cannot be told, or scores that cannot be used, are problems of the inspection, not errors. Rows are
    dropped as in a run that takes every score it finds from the columns.

    Raises:
        ConfigError: no such format.
        SourceError: bad files, or no rows.
        OSError: the storage failed.
    """
    check_format_name(format)
    scan = scan_files(fs, root)
    head = rows_sampled(fs, scan, SAMPLE_ROWS, first_file_only=True)
    sample = rows_sampled(fs, scan, sample_rows, first_file_only=False)
    problems: list[str] = []
    name, plan = None, NO_SCORES
    try:
        name = resolve_format(format, head.columns, head.decoded)
        plan = _score_plan(head.columns, name)
    except (SourceError, SchemaError) as error:
        problems.append(str(error))
    if scan.ignored:
        problems.append(f"ignored {ignored_text(scan.ignored)}")
    pairs, drops, num_unlike = _pairs(name, sample, plan)
    if num_unlike:
        problems.append(f"in {num_unlike:,} sampled rows the prompt text is no turn of the dialogues (trusted)")
    return Inspection(
        root=root,
        format=name,
        decided="set by source.format" if format != AUTO else f"from the columns and {len(head.rows)} rows",
        num_files=len(scan.files),
        num_rows=scan.num_rows,
        num_bytes=sum(file.size for file in scan.files),
        file_kinds=tuple(sorted({str(file.kind) for file in scan.files})),
        columns=tuple(
            sample.columns.items() if scan.schema is None else ((field.name, str(field.type)) for field in scan.schema)
        ),
        num_sampled=len(sample.rows),
        pairs=_pair_figures(pairs),
        drop_reasons=dict(sorted(drops.items())),
        score_columns=_score_columns(sample.columns),
        ignored=scan.ignored,
        problems=(*problems, *_pair_problems(name, pairs)),
    )


def render(inspection: Inspection) -> str:
    """The inspection as plain text for a terminal."""
    found, pairs = inspection, inspection.pairs
    kinds = ", ".join(found.file_kinds)
    counts = "pairs not counted: no format"
    if found.readable:
        tools = f"{pairs.num_with_tools:,} with tools"
        counts = f"{pairs.num_pairs:,} pairs, {pairs.num_with_system:,} with a system turn, {tools}"
    out = [
        f"source    {shown_path(found.root)}",
        f"files     {found.num_files:,} ({kinds}), {found.num_bytes:,} bytes",
        *([f"ignored   {ignored_text(found.ignored)}"] if found.ignored else []),
        f"rows      {found.num_rows:,}",
        f"format    {found.format or 'unknown'} ({found.decided})",
        "columns",
        *(f"  {shown(name)}: {shown(kind, _LONGEST_TYPE)}" for name, kind in found.columns),
        f"scores    {', '.join(found.score_columns) or 'none'}",
        f"sample    {found.num_sampled:,} rows, {counts}",
    ]
    for title, table in (("turns", pairs.turns), ("characters", pairs.chars)):
        if table:
            out.append(f"{title:<12}{'min':>10}{'median':>10}{'p95':>10}{'max':>10}")
            out += [f"  {s:<10}{f.least:>10,}{f.median:>10,}{f.p95:>10,}{f.most:>10,}" for s, f in table.items()]
    if found.readable or found.drop_reasons:
        out.append(f"dropped   {sum(found.drop_reasons.values()):,} of the sample")
    out += [f"  {reason}: {count:,}" for reason, count in found.drop_reasons.items()]
    out.append("problems" if found.problems else "problems  none")
    out += [f"  {line}" for problem in found.problems for line in problem.splitlines()]
    return "\n".join(out)


def _pairs(name: str | None, sample: Sample, plan: ScorePlan) -> tuple[list[PairRow], Counter[str], int]:
    """The sample's pairs, its drops by reason, and how many pairs disagree with their row's prompt text."""
    pairs: list[PairRow] = []
    drops: Counter[str] = Counter()
    num_unlike = 0
    for row in sample.rows:
        outcome = _converted(name, row, plan)
        if isinstance(outcome, Drop):
            drops[str(outcome.reason)] += 1
        elif outcome is not None:
            pairs.append(outcome)
            num_unlike += name in _DIALOGUES_BESIDE_TEXT and _prompt_differs(row, outcome)
    return pairs, drops, num_unlike


def _prompt_differs(row: Row | Drop, pair: PairRow) -> bool:
    text = None if isinstance(row, Drop) else row.get("prompt")
    return isinstance(text, str) and all(turn["content"] != text for turn in pair.prompt)


def _pair_figures(pairs: Sequence[PairRow]) -> PairFigures:
    sides: dict[str, list[Sequence[Turn]]] = {
        "prompt": [pair.prompt for pair in pairs],
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
    }
    return PairFigures(
        num_pairs=len(pairs),
        num_with_system=sum(any(turn["role"] in SYSTEM_ROLES for turn in pair.prompt) for pair in pairs),
        num_with_tools=sum(pair.tools is not None for pair in pairs),
        turns={name: _figures([len(turns) for turns in side]) for name, side in sides.items() if pairs},
        chars={
            name: _figures([sum(len(turn["content"]) for turn in turns) for turns in side])
            for name, side in sides.items()
            if pairs
        },
    )


def _converted(name: str | None, row: Row | Drop, plan: ScorePlan) -> PairRow | Drop | None:
    if isinstance(row, Drop):
        return row
    try:
        pair = None if name is None else FORMATS[name].convert(row)
        scores = read_scores(row, pair, plan) if isinstance(pair, PairRow) else None
    except Exception as error:  # noqa: BLE001 - reason_of passes on what is not to be blamed on the row
        return Drop(reason_of(error, "of the sample"))
    return scores if isinstance(scores, Drop) else pair


def _score_plan(columns: Columns, name: str) -> ScorePlan:
    """The scores of a run that reads every score that the table has."""
    found = {*_score_columns(columns)}
    return plan_scores(
        columns,
        name,
        rewards=bool(found - _NO_REWARDS),
        policy_logps=found >= {*POLICY_LOGPS, *RESPONSE_COUNTS},
        reference_logps=found >= {*REFERENCE_LOGPS},
    )


def _pair_problems(name: str | None, pairs: Sequence[PairRow]) -> list[str]:
    if name is None:
        return []
    if not pairs:
        return ["no row of the sample yields a pair"]
    num_distinct = len({content_digest(pair.prompt, pair.chosen, pair.rejected, pair.tools) for pair in pairs})
    repeated = len(pairs) - num_distinct
    return [f"{repeated:,} pairs of the sample repeat an earlier one"] if repeated else []


def _score_columns(columns: Columns) -> tuple[str, ...]:
    wanted = {Kind.NUMBER, Kind.NUMBERS, Kind.FLAG}
    return tuple(name for name in dict.fromkeys(ALL_SCORE_COLUMNS) if columns.get(name) in wanted)


def _figures(counts: Sequence[int]) -> Figures:
    ordered = sorted(counts)
    last = len(ordered) - 1
    p95 = ordered[-(-len(ordered) * 95 // 100) - 1]
    return Figures(least=ordered[0], median=ordered[last // 2], p95=p95, most=ordered[last])
