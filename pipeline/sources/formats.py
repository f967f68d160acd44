"""The formats that alignpot reads, by the name that `source.format` takes, and which of them a table is of.

A format is left out where columns that it needs are missing. Each of the others says whether it claims the table. One
claim decides. None or several end with a SourceError that names the values of `source.format` to choose from.

To add a format, write a module that makes its `Format`, add that to FORMATS, and put `table()` into README.md.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.drops import Drop
from pipeline.errors import ConfigError, SchemaError, SourceError
from pipeline.shown import shown
from pipeline.sources.answers import ANSWERS
from pipeline.sources.blocks import decoded, read_rows
from pipeline.sources.columns import Columns, Kind, Row, described, kinds_of
from pipeline.sources.compared import COMPARED
from pipeline.sources.messages import IMPLICIT, MESSAGES, OPENAI, SCORED
from pipeline.sources.ranked import BINARIZED, CANDIDATES, JUDGED, RATED, RESPONSES
from pipeline.sources.rows import BEGUN, BESIDE_PAIR, HISTORY, SYSTEM_TEXTS, Format, prompt_text_column
from pipeline.sources.scores import ALL_SCORE_COLUMNS
from pipeline.sources.shards import SourceScan
from pipeline.sources.texts import CONTEXT, STRINGS, TRANSCRIPT

AUTO: Final = "auto"
SAMPLE_ROWS: Final = 64

FORMATS: Final[dict[str, Format]] = {
    known.name: known
    for known in (
        *(MESSAGES, IMPLICIT, SCORED, OPENAI, STRINGS, TRANSCRIPT, BINARIZED),
        *(CANDIDATES, RESPONSES, JUDGED, RATED, ANSWERS, COMPARED),
    )
}

MEANINGS: Final = {
    **dict.fromkeys(SYSTEM_TEXTS, "a system prompt"),
    BEGUN: "the beginning of both answers",
    **dict.fromkeys(("prefix", "response_prefix", "partial_response"), "maybe the beginning of both answers"),
    HISTORY: "what was said before the prompt",
    CONTEXT: "text that the prompt may speak of",
    "functions": "tools",
    "safer_response_id": "a second label",
}
"""Columns that change what a row means, beside its prompt and its answers."""
_AS_TURNS: Final = (HISTORY, CONTEXT)
_ONE_ANSWER: Final[tuple[Columns, ...]] = (
    {"completion": Kind.TURNS, "label": Kind.FLAG},
    {"completion": Kind.TEXT, "label": Kind.FLAG},
    {"kto_tag": Kind.FLAG},
    {"response": Kind.TEXT, "helpfulness": Kind.NUMBER},
)
"""Columns that tell of rows that hold one answer each: those for KTO, and HelpSteer2 with its attributes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The first rows of a source and the kinds of its columns."""

    columns: Columns
    rows: tuple[Row | Drop, ...]

    @property
    def decoded(self) -> list[Row]:
        """The rows that could be decoded."""
        return [row for row in self.rows if not isinstance(row, Drop)]


def sample_rows(fs: Any, scan: SourceScan, num_rows: int = SAMPLE_ROWS, *, first_file_only: bool = True) -> Sample:
    """The first rows of the source, or of its first file that has any, and the kinds of all its columns."""
    names = {*ALL_SCORE_COLUMNS, *BESIDE_PAIR}.union(*(known.reads for known in FORMATS.values()))
    columns = () if scan.schema is None else tuple(name for name in scan.schema.names if name in names)
    rows: list[Row | Drop] = []
    for file in (file for file in scan.files if file.num_rows):
        if columns or file.kind.is_json:
            shard = file.shard(0, min(num_rows - len(rows), file.num_rows))
            rows += decoded(read_rows(fs, scan.root, shard, columns), shard)
        if first_file_only or len(rows) >= num_rows:
            break
    kinds = kinds_of(scan.schema, [row for row in rows if not isinstance(row, Drop)])
    return Sample(columns=kinds, rows=tuple(rows))


def check_format_name(name: str) -> None:
    """Raise a ConfigError that names the nearest formats, unless `name` is a format or auto."""
    if name == AUTO or name in FORMATS:
        return
    near = difflib.get_close_matches(name, [AUTO, *FORMATS], n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise ConfigError(f"source.format {name!r} is unknown{hint} Known: {', '.join([AUTO, *FORMATS])}.")


def claiming(columns: Columns, sample: Sequence[Row]) -> list[str]:
    """Names of the formats that claim a table of these columns and sampled rows.

    Scored candidates are claimed by the formats that read them, and by no other.
    """
    has_candidates = any(
        columns.get(known.candidates[0]) is Kind.TEXTS and columns.get(known.candidates[1]) is Kind.NUMBERS
        for known in FORMATS.values()
        if known.candidates
    )
    return [
        name
        for name, known in FORMATS.items()
        if not known.lacks(columns) and (known.candidates or not has_candidates) and known.claims(columns, sample)
    ]


def resolve_format(name: str, columns: Columns, sample: Sequence[Row]) -> str:
    """The format to read with: `name`, or for auto the one format that claims the table.

    Raises:
        ConfigError: no such format.
        SchemaError: the table lacks columns that the named format needs.
        SourceError: for auto, no format claims the table, or more than one does.
    """
    check_format_name(name)
    if name != AUTO:
        missing = FORMATS[name].lacks(columns)
        if missing:
            raise SchemaError(
                f"source.format {name} needs {', '.join(missing)}; the source has {described(columns)}. "
                "Choose another source.format, or auto."
            )
        return name
    names = claiming(columns, sample)
    if len(names) == 1:
        return names[0]
    if names:
        raise SourceError(
            f"the source can be read as {' or '.join(names)}: {described(columns)}. "
            f"Set source.format to one of: {', '.join(names)}."
        )
    if any(all(columns.get(column) is kind for column, kind in layout.items()) for layout in _ONE_ANSWER):
        raise SourceError(
            f"the source has one answer in each row, as for KTO, and no pairs: {described(columns)}. Write two answers "
            "to a prompt into one row, as prompt, chosen and rejected."
        )
    every = "\n".join(f"  {known.name}: {known.about}" for known in FORMATS.values())
    raise SourceError(
        f"the source is of no known format: it has {described(columns)}.{_near_misses(columns)} "
        f"Rename its columns to fit one of these:\n{every}"
    )


def unread(name: str, columns: Columns) -> list[str]:
    """A line for each column of the table that changes what its rows mean, and that the format does not read."""
    there = [column for column in MEANINGS if columns.get(column) not in {None, Kind.NULL}]
    # Of history and context, formats read message lists, and a text only where there is no other prompt.
    texts = {column for column in _AS_TURNS if columns.get(column) is Kind.TEXT and prompt_text_column(columns)}
    return [
        f"column {column} ({MEANINGS[column]}) is not read by format {name}"
        for column in there
        if column not in FORMATS[name].reads or column in texts
    ]


def table() -> str:
    """The formats as a table for people."""
    rows = [f"| `{known.name}` | {known.about} | {known.known_from} |" for known in FORMATS.values()]
    return "\n".join(["| format | rows | as in |", "|---|---|---|", *rows])


def _near_misses(columns: Columns) -> str:
    """Columns whose names are nearly those that a format reads, and that the table lacks."""
    read = {name for known in FORMATS.values() if known.wants for name in known.reads}
    wanted = sorted(read - {*columns})
    near = {name: difflib.get_close_matches(name, wanted, n=1, cutoff=0.75) for name in columns if name not in read}
    return "".join(f" {shown(name)}: did you mean {found[0]}?" for name, found in near.items() if found)
