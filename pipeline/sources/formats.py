"""The formats that alignpot reads, by the name that `source.format` takes, and which of them a table is of.

A format is left out where columns that it needs are missing. Each of the others says whether it claims the table. One
claim decides. None or several end with a SourceError that names the values of `source.format` to choose from.

To add a format, write a module that makes its `Format`, add that to FORMATS, and put `table()` into README.md.
"""

import difflib
import itertools
from collections.abc import Collection, Container, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline.config import Source
from pipeline.drops import Drop
from pipeline.errors import ConfigError, SchemaError, SourceError
from pipeline.schema import CHOSEN, PROMPT, REJECTED
from pipeline.shown import shown
from pipeline.sources.answers import ANSWERS
from pipeline.sources.blocks import decoded, read_rows
from pipeline.sources.columns import Columns, Kind, Row, described, empty_table
from pipeline.sources.compared import COMPARED
from pipeline.sources.mapping import ColumnMap
from pipeline.sources.messages import IMPLICIT, MESSAGES, OPENAI, SCORED
from pipeline.sources.naming import SPELLINGS, mapped_kinds, paths_of, plan_map, proposal
from pipeline.sources.ranked import BINARIZED, CANDIDATES, JUDGED, RATED, RESPONSES
from pipeline.sources.rows import BEGUN, BESIDE_PAIR, HISTORY, SYSTEM_TEXTS, Format, prompt_text_column
from pipeline.sources.scores import ALL_SCORE_COLUMNS
from pipeline.sources.shards import SourceScan
from pipeline.sources.texts import CONTEXT, STRINGS, TRANSCRIPT
from pipeline.sources.unpaired import UNPAIRED
from pipeline.where import parse_where

AUTO: Final = "auto"
SAMPLE_ROWS: Final = 64

FORMATS: Final[dict[str, Format]] = {
    known.name: known
    for known in (
        *(MESSAGES, IMPLICIT, SCORED, OPENAI, STRINGS, TRANSCRIPT, BINARIZED),
        *(CANDIDATES, RESPONSES, JUDGED, RATED, ANSWERS, COMPARED, UNPAIRED),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The first rows of a source and the kinds of its columns, both as mapped."""

    scan: SourceScan
    columns: Columns
    rows: tuple[Row | Drop, ...]
    read: tuple[Row, ...]
    """The rows that could be decoded, as they were read."""
    schema: pa.Schema | None
    """Types as they were read of every column, by its own name and by the one that it is mapped to."""
    map: ColumnMap
    paths: Columns
    """Every column and field of the source itself, by its path."""

    @property
    def decoded(self) -> list[Row]:
        """The rows that could be decoded."""
        return [row for row in self.rows if not isinstance(row, Drop)]


def sample_rows(
    fs: Any,
    scan: SourceScan,
    source: Source | None = None,
    num_rows: int = SAMPLE_ROWS,
    *,
    first_file_only: bool = True,
    rewards: Collection[str] = (),
) -> Sample:
    """The first rows of the source, or of its first file that has any, and the kinds of all its columns.

    rewards: columns of rewards that have names.

    Raises:
        ConfigError: `source.columns` gives a name that nothing reads.
        SchemaError: `source.columns` names a column that is not there.
    """
    read = {*ALL_SCORE_COLUMNS, *BESIDE_PAIR, *rewards}.union(*(known.reads for known in FORMATS.values()))
    columns = {} if source is None else source.columns
    asked: tuple[str, ...] = ()
    if source is not None:
        asked = parse_where(source.where).columns if source.where else ()
        _check_names(columns, {*read, *source.passthrough, *asked, source.id_column or PROMPT})
    heads = (prefix for place in columns.values() for prefix in itertools.accumulate(place.split("."), "{}.{}".format))
    read |= {source.id_column} if source is not None and source.id_column else set()
    raw = raw_rows(fs, scan, {*read, *SPELLINGS, *asked, *heads}, num_rows, first_file_only=first_file_only)
    found = [row for row in raw if not isinstance(row, Drop)]
    mapped = plan_map(columns, {} if source is None else source.roles, scan.schema, found, rewards)
    rows = tuple(row if isinstance(row, Drop) else mapped.of_row(row) for row in raw)
    kinds = mapped_kinds(mapped, scan.schema, [row for row in rows if not isinstance(row, Drop)])
    kinds |= {name: Kind.TEXT for name in scan.partitions if name not in kinds}
    schema = None
    if scan.schema is not None:
        empty = empty_table(scan.schema)
        every = dict.fromkeys([*kinds, *scan.schema.names])
        schema = pa.schema([(name, mapped.column(empty, name).type) for name in every])
    paths = paths_of(scan.schema, found)
    return Sample(scan=scan, columns=kinds, rows=rows, read=tuple(found), schema=schema, map=mapped, paths=paths)


def raw_rows(
    fs: Any, scan: SourceScan, names: Container[str], num_rows: int = SAMPLE_ROWS, *, first_file_only: bool = True
) -> list[Row | Drop]:
    """The first rows as they were read. Of files with a schema only the columns of these names are read."""
    columns = () if scan.schema is None else tuple(name for name in scan.schema.names if name in names)
    rows: list[Row | Drop] = []
    for file in (file for file in scan.files if file.num_rows):
        if columns or file.kind.is_json:
            shard = file.shard(0, min(num_rows - len(rows), file.num_rows))
            rows += decoded(read_rows(fs, scan.root, shard, columns), shard)
        if first_file_only or len(rows) >= num_rows:
            break
    return rows


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


def _check_names(columns: Iterable[str], known: AbstractSet[str]) -> None:
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or [PROMPT, CHOSEN, REJECTED]
            raise ConfigError(
                f"source.columns gives a column the name {shown(name)}, which nothing reads; {', '.join(near)} and the "
                "other columns of the formats are read. To carry a column along, name it in source.passthrough too."
            )


def resolve_format(name: str, columns: Columns, sample: Sequence[Row], paths: Columns | None = None) -> str:
    """The format to read with: `name`, or for auto the one format that claims the table.

    `paths` are the names in the source itself, where they may differ.

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
    every = "\n".join(f"  {known.name}: {known.about}" for known in FORMATS.values())
    nearly = [known.lacks(columns) for known in (COMPARED, UNPAIRED)]
    lacking = next((lacks[0].split()[0] for lacks in nearly if len(lacks) == 1 and " (" in lacks[0]), None)
    lines = proposal(columns if paths is None else paths, [lacking] if lacking else [])
    remedy = f"Say which columns hold the pair, such as\n{lines}\nor rename" if lines else "Rename"
    raise SourceError(
        f"the source is of no known format: it has {described(columns)}. {remedy} its columns to fit one of these:\n"
        f"{every}"
    )


def unread(known: Format, columns: Columns) -> list[str]:
    """A line for each column of the table that changes what its rows mean, and that the format does not read."""
    there = [column for column in MEANINGS if columns.get(column) not in {None, Kind.NULL}]
    # Of history and context, formats read message lists, and a text only where there is no other prompt.
    texts = {column for column in _AS_TURNS if columns.get(column) is Kind.TEXT and prompt_text_column(columns)}
    return [
        f"column {column} ({MEANINGS[column]}) is not read by format {known.name}"
        for column in there
        if column not in known.reads or column in texts
    ]


def table(*, short: bool = False) -> str:
    """The formats as a table for people; short: without what their rows look like."""
    if short:
        lines = [f"| `{known.name}` | {known.known_from} |" for known in FORMATS.values()]
        return "\n".join(["| format | as in |", "|---|---|", *lines])
    lines = [f"| `{known.name}` | {known.about} | {known.known_from} |" for known in FORMATS.values()]
    return "\n".join(["| format | rows | as in |", "|---|---|---|", *lines])
