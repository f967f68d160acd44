"""What a trainer's format is: its own columns, and the pairs that it cannot hold."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa

from pipeline import schema
from pipeline.sources.turns import dialogue, message_of

Row = Mapping[str, Any]

SIDES: Final = (schema.CHOSEN, schema.REJECTED)
JSON: Final = pa.json_(pa.string())
ANSWER: Final = "__answer__"
"""In the rows of an unpaired format: the completion, a message list."""
WANTED: Final = "__wanted__"
"""In the rows of an unpaired format: whether the completion is the chosen one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is true of the pairs that fit: some pair has tools or arguments for the template; every pair has both values
    of the other kinds.
    """

    has_fields: bool
    """The messages of the subset may have fields beside role and content."""
    has_kwargs: bool
    has_tools: bool
    has_reference: bool
    has_rewards: bool
    has_margin: bool
    held_out: tuple[str, ...] = ()
    """Splits beside `train`."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that the trainer reads, and its value for a pair."""

    name: str
    type: pa.DataType
    value: Callable[[Row], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFormat:
    """One format of one trainer."""

    name: str
    container: str
    """hf: a `load_from_disk` folder; jsonl: JSON Lines."""
    reads: str
    """Who reads it, in a few words."""
    usage: str
    """How to point the trainer at it; {path} stands for the folder."""
    held_out: str
    """The same for a split that is held out; {split} stands for its name."""
    columns: Callable[[Facts], Sequence[Column]]
    """What the trainer reads."""
    unfit: Callable[[Row], str | None] = lambda _: None
    """Why the format cannot hold a pair; None if it can."""
    misread: frozenset[str] = frozenset()
    """Names of columns that the trainer would take for something else; they are left out."""
    unpaired: bool = False
    """Whether each answer is a row of its own, with ANSWER and WANTED."""
    one_file: bool = False
    """Whether the trainer can tell splits only if each is one file."""
    descriptions: Callable[[Facts], Mapping[str, bytes]] = lambda _: {}
    """Small files beside the data, by name."""

    @property
    def rows_per_pair(self) -> int:
        """Two for unpaired formats."""
        return 2 if self.unpaired else 1


def whole(row: Row) -> Row:
    """The pair with whole answers where the prompt holds their beginning. No trainer knows an answer already begun.

    The reference log-probs are those of the rest alone, so such a pair has none.
    """
    prompt = row[schema.PROMPT]
    if not prompt or prompt[-1]["role"] != "assistant":
        return row
    answers = {side: dialogue(prompt, row[side])[len(prompt) - 1 :] for side in SIDES}
    none = dict.fromkeys({schema.REFERENCE_LOGP_CHOSEN, schema.REFERENCE_LOGP_REJECTED} & row.keys())
    return {**row, schema.PROMPT: prompt[:-1], **answers, **none}


def messages(*names: str) -> list[Column]:
    """Message lists of the subset under their own names, for trainers that read role and content alone."""
    return [Column(name, schema.MESSAGES, itemgetter(name)) for name in names]


def chats(facts: Facts, name: str, turns: Callable[[Row], Iterable[Mapping[str, Any]]]) -> Column:
    """A column of message lists. If some have fields of their own, each message is JSON, as `datasets` stores them.

    A struct would give every message every field, null where it has none, and templates would see those.
    """
    if not facts.has_fields:
        return Column(name, schema.MESSAGES, turns)
    return Column(name, pa.list_(JSON), lambda row: [_json(message_of(turn)) for turn in turns(row)])


def template_kwargs(facts: Facts) -> list[Column]:
    """The arguments of each row for the chat template, if some pair has any."""
    column = Column(schema.TEMPLATE_KWARGS, JSON, lambda row: row.get(schema.TEMPLATE_KWARGS) or "{}")
    return [column] if facts.has_kwargs else []


def tools(facts: Facts, *, absent: str | None = None) -> list[Column]:
    """The tools column, if some pair has tools; `absent` is the value of the other pairs."""
    column = Column(schema.TOOLS, pa.string(), lambda row: row.get(schema.TOOLS) or absent)
    return [column] if facts.has_tools else []


def margin(facts: Facts) -> list[Column]:
    """The explicit margin (chosen minus rejected, in units of the reward model), if every pair has one."""
    return [Column("margin", pa.float64(), itemgetter(schema.MARGIN_EXPLICIT))] if facts.has_margin else []


def has_tools(row: Row) -> str | None:
    """Unfit for trainers that cannot show tools, tool calls or reasoning to the template."""
    return "tools" if row.get(schema.TOOLS) is not None else has_fields(row)


def has_fields(row: Row) -> str | None:
    """Unfit for trainers that read role and content alone."""
    turns = (turn for name in (schema.PROMPT, *SIDES) for turn in row[name])
    found = sorted({name for turn in turns for name in schema.MESSAGE_FIELDS if turn.get(name) is not None})
    if found:
        return f"{found[0]} of a message"
    return schema.TEMPLATE_KWARGS if row.get(schema.TEMPLATE_KWARGS) is not None else None


def many_turns(row: Row) -> str | None:
    """Unfit for formats whose answer is one turn of the assistant."""
    one_each = all([turn["role"] for turn in row[side]] == ["assistant"] for side in SIDES)
    return None if one_each else "an answer of several turns"


def unknown_role(turns: Iterable[Mapping[str, Any]], known: frozenset[str]) -> str | None:
    """Unfit for trainers that know only some roles."""
    found = sorted({str(turn["role"]) for turn in turns} - known)
    return f"role {found[0]}" if found else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
