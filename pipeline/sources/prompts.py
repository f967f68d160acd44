"""The prompts of a source, row by row: those of any pair format, or of a dataset of prompts alone.

A row of prompts alone has one of these:

    prompt or messages as turns; assistant turns at the end of `messages` are cut off
    text in the columns from which pair formats read prompts
    text in the column `text`, if the format is named: texts of any kind bear that name

Rows of a pair format give the prompt of their pair. If only the answers are unfit, such as two equal ones, a prompt
that stands apart is used nevertheless. Prompts that were written for tools, or that hold tool calls or reasoning, are
dropped: without these they would ask for something else.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pipeline import schema as s
from pipeline.config import Prompts
from pipeline.drops import Drop, DropRow, Reason
from pipeline.errors import ConfigError, SchemaError, SourceError
from pipeline.sources.blocks import decoded, read_rows
from pipeline.sources.columns import Columns, Kind, Row, check_id_column, described
from pipeline.sources.files import scan_files
from pipeline.sources.formats import AUTO, FORMATS, claiming, resolve_format, sample_rows
from pipeline.sources.mapping import ColumnMap
from pipeline.sources.rows import BESIDE_PAIR, MEDIA, PROMPT_TEXTS, SYSTEM_TEXTS, Turn, prompt_text_column, reason_of
from pipeline.sources.shards import SourceFile, plan_shards
from pipeline.sources.splits import Wanted
from pipeline.sources.turns import check_prompt, id_of, prompt_from_texts, turns_of, without_last_answers

PROMPTS_FORMAT: Final = "prompts"
"""The value of `prompts.format` for a dataset of prompts alone."""

_MESSAGES: Final = "messages"
_TEXT: Final = "text"
_READS: Final = (*PROMPT_TEXTS, *SYSTEM_TEXTS, _MESSAGES, _TEXT, s.TOOLS, s.STATUS)
_KEYS_OF_SOURCE: Final = re.compile(r"\bsource(\.(?:path|format|id_column|split|config)\b|: \{(?:split|config):)")
_SHARD_ROWS: Final = 1024
# Faults of a row's answers that leave its prompt usable.
_ANSWERS_UNFIT: Final = frozenset(
    {
        Reason.EMPTY_RESPONSE,
        Reason.IDENTICAL_RESPONSES,
        Reason.TOO_FEW_CANDIDATES,
        Reason.LONE_ANSWER,
        Reason.CANDIDATE_COUNT_MISMATCH,
        Reason.TIED_REWARDS,
        Reason.NULL_SCORE,
        Reason.NON_FINITE_SCORE,
    }
)


class PromptRow(NamedTuple):
    """The prompt of a row of the source, or why it has none. `place` is file and 0-based row.

    `id` is from the id column, if one is named and the row has a prompt.
    """

    place: str
    id: str | None
    prompt: list[Turn] | Drop


@dataclass(frozen=True, kw_only=True)
class PromptReader:
    """A source of prompts that was checked and can be read; `format` as `prompts.format`, never auto."""

    fs: Any
    root: str
    files: tuple[SourceFile, ...]
    format: str
    id_column: str | None
    columns: tuple[str, ...]
    map: ColumnMap

    def rows(self) -> Iterator[PromptRow]:
        """Every row of every file, in order.

        Raises:
            SourceError: a file is corrupt, gone or changed.
            OSError: the storage failed.
        """
        for shard in plan_shards(self.files, _SHARD_ROWS):
            columns = tuple(self.map.reads(self.columns))
            rows = decoded(read_rows(self.fs, self.root, shard, columns), shard)
            for index, row in enumerate(rows, shard.first_row):
                place = f"{shard.file}:{index}"
                try:
                    row_id, prompt = (None, row) if isinstance(row, Drop) else self._read(self.map.of_row(row))
                except Exception as error:  # noqa: BLE001 - reason_of passes on what is not to be blamed on the row
                    row_id, prompt = None, Drop(reason_of(error, place))
                yield PromptRow(place, row_id, prompt)

    def _read(self, row: Row) -> tuple[str | None, list[Turn] | Drop]:
        prompt = _prompt_alone(row) if self.format == PROMPTS_FORMAT else _prompt_of_pair(row, self.format)
        return None if self.id_column is None else id_of(row.get(self.id_column)), prompt


def open_prompts(fs: Any, root: str, prompts: Prompts) -> PromptReader:
    """Check the whole source of prompts: files, format and id column.

    Raises:
        ConfigError: `prompts.format` is unknown.
        SourceError: bad files, no rows, or a format that cannot be told.
        SchemaError: the format or the id lacks its column.
        OSError: the storage failed.
    """
    with _errors_name_prompts():
        scan = scan_files(fs, root, Wanted(split=prompts.split, config=prompts.config))
        sample = sample_rows(fs, scan)
        name = _format_of(prompts.format, sample.columns, sample.decoded)
        if prompts.id_column is not None:
            check_id_column(prompts.id_column, sample.columns, sample.schema)
    reads = {*(_READS if name == PROMPTS_FORMAT else FORMATS[name].reads), *BESIDE_PAIR, prompts.id_column}
    columns = tuple(column for column in sample.columns if column in reads)
    return PromptReader(
        fs=fs,
        root=scan.root,
        files=scan.files,
        format=name,
        id_column=prompts.id_column,
        columns=columns,
        map=sample.map,
    )


def _prompt_alone(row: Row) -> list[Turn]:
    """The prompt of a row of prompts alone, or DropRow."""
    if row.get(s.STATUS) == s.DROPPED:
        raise DropRow(Reason.DROPPED_BEFORE)
    if row.get(s.TOOLS) or any(row.get(name) for name in MEDIA):
        raise DropRow(Reason.UNSUPPORTED_CONTENT)
    if isinstance(row.get(s.PROMPT), (list, Mapping)):
        turns = turns_of(row[s.PROMPT])
    elif isinstance(row.get(_MESSAGES), (list, Mapping)):
        turns = without_last_answers(turns_of(row[_MESSAGES]))
    elif all(row.get(name) is None for name in PROMPT_TEXTS):
        turns = prompt_from_texts({**row, s.PROMPT: row.get(_TEXT)})
    else:
        turns = prompt_from_texts(row)
    check_prompt(turns)
    return _plain(turns)


def _plain(prompt: list[Turn]) -> list[Turn]:
    """The prompt, if its turns hold role and content alone, or DropRow."""
    if any(field in turn for turn in prompt for field in s.MESSAGE_FIELDS):
        raise DropRow(Reason.UNSUPPORTED_CONTENT)
    return prompt


def _prompt_of_pair(row: Row, name: str) -> list[Turn]:
    try:
        pair = FORMATS[name].convert(row)
    except DropRow as drop:
        # Dialogues in messages may hold turns that a text beside them lacks.
        apart = isinstance(row.get(s.PROMPT), list) or not isinstance(row.get(s.CHOSEN), list)
        if drop.reason not in _ANSWERS_UNFIT or not apart or name == "transcript":
            raise
        return _prompt_alone(row)
    if pair.tools is not None or pair.template_kwargs is not None:
        raise DropRow(Reason.UNSUPPORTED_CONTENT)
    return _plain(without_last_answers(pair.prompt))  # an answer already begun is no part of it


def _format_of(name: str, columns: Columns, sample: list[Row]) -> str:
    has_turns = Kind.TURNS in {columns.get(s.PROMPT), columns.get(_MESSAGES)}
    can_be_prompts = has_turns or prompt_text_column(columns) is not None
    if name == PROMPTS_FORMAT and not can_be_prompts and columns.get(_TEXT) is not Kind.TEXT:
        raise SchemaError(
            f"prompts.format {PROMPTS_FORMAT} needs prompt or messages as turns, or prompt, instruction, question, "
            f"input or text as text; the source has {described(columns)}. Rename a column to one of these."
        )
    if name == PROMPTS_FORMAT or (name == AUTO and can_be_prompts and not claiming(columns, sample)):
        return PROMPTS_FORMAT
    return resolve_format(name, columns, sample)


@contextmanager
def _errors_name_prompts() -> Iterator[None]:
    """Name the keys of `prompts` in errors of this folder, which name those of `source`."""
    try:
        yield
    except (ConfigError, SourceError, SchemaError) as error:
        raise type(error)(re.sub(_KEYS_OF_SOURCE, r"prompts\1", str(error))) from None
