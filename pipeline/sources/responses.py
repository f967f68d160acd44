"""Rows of a prompt with one response or several, each of which is to get a reward: no pairs.

A row has one of these; the first that is not null is read:

    a list of responses (LISTS): texts, messages, or objects that hold a text
    one response (ANSWERS), text or messages
    `messages` that end with the response

The prompt stands where pair formats have it. A response is one assistant turn of text. Scores and labels beside it are
not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline import schema as s
from pipeline.drops import DropRow, Reason
from pipeline.sources import answers
from pipeline.sources.beside_text import check_fields
from pipeline.sources.column_pairs import NotPlain
from pipeline.sources.columns import Columns, Kind, Row
from pipeline.sources.reader import PairReader
from pipeline.sources.rows import (
    BESIDE_PAIR,
    HISTORY,
    MEDIA,
    PLAIN_KEYS,
    SYSTEM_TEXTS,
    TURNS_OR_TEXT,
    Format,
    PairRow,
    Turn,
    json_digest,
)
from pipeline.sources.texts import PROMPT_COLUMNS, after_history, has_prompt, with_prompt
from pipeline.sources.turns import checked_prompt, completion_of, template_kwargs_of, text_of, tools_of, turns_of
from pipeline.sources.unpaired import ANSWERS

LISTS: Final = (s.RESPONSES, *answers.LISTS)
_MESSAGES: Final = "messages"
_OF_LISTS: Final = frozenset({Kind.TEXTS, Kind.TURNS, Kind.OTHER})


def read_responses(row: Row) -> tuple[PairRow, list[str]]:
    """What a row holds: a pair without sides (prompt, tools, arguments of the template), and the responses, or DropRow.

    A response without text is "".
    """
    several = next((row[name] for name in LISTS if row.get(name) is not None), None)
    one = next((row[name] for name in ANSWERS if row.get(name) is not None), None)
    if several is not None and not isinstance(several, list):
        raise DropRow(Reason.WRONG_TYPE)
    if several is not None or one is not None:
        own = with_prompt(row)
        given = own.get(s.PROMPT)
        prompt = turns_of(given) if isinstance(given, (list, Mapping)) else after_history(own)
        found = [_turns_of(item) for item in several] if several is not None else [completion_of(one)]
    else:
        dialogue = turns_of(row.get(_MESSAGES))
        prompt, found = dialogue[:-1], [dialogue[-1:]]
    if not found:
        raise DropRow(Reason.TOO_FEW_CANDIDATES)
    texts = [_text_of(turns, prompt) for turns in found]
    prompt = checked_prompt(prompt, row)
    if any(row.get(name) for name in MEDIA):
        raise DropRow(Reason.UNSUPPORTED_CONTENT)
    tools, kwargs = tools_of(row.get(s.TOOLS)), template_kwargs_of(row.get(s.TEMPLATE_KWARGS))
    return PairRow(prompt=prompt, chosen=[], rejected=[], tools=tools, template_kwargs=kwargs), texts


def _turns_of(item: Any) -> list[Turn]:
    """A response of a list as turns: a text, messages, or an object that holds either."""
    if isinstance(item, Mapping) and "role" not in item:
        item = next((item[key] for key in answers.TEXTS if item.get(key) is not None), None)
    return completion_of(item)


def _text_of(turns: list[Turn], prompt: list[Turn]) -> str:
    """The text of a response, which may come after its prompt."""
    answer = turns[len(prompt) :] if prompt and turns[: len(prompt)] == prompt else turns
    if len(answer) != 1 or not answer[0].keys() <= PLAIN_KEYS:
        raise DropRow(Reason.UNSUPPORTED_CONTENT)
    if answer[0]["role"] != "assistant":
        raise DropRow(Reason.WRONG_ROLES)
    text = text_of(answer[0].get("content"))
    return text if text.strip() else ""


def _needs(columns: Columns) -> list[str]:
    """What a table lacks. Where it holds pairs, `messages` are not taken for a response."""
    has_pair = {s.CHOSEN, s.REJECTED} <= columns.keys()
    if any(columns.get(name) in _OF_LISTS for name in LISTS) or any(
        columns.get(name) in TURNS_OR_TEXT for name in ANSWERS
    ):
        return [] if has_prompt(columns) else ["prompt (text or turns)"]
    if columns.get(_MESSAGES) is Kind.TURNS and not has_pair:
        return []
    return ["response (text or turns), or responses (a list of them)"]


RESPONSES: Final = Format(
    name="prompt with responses",
    about="a prompt, and one response or a list of them",
    wants={},
    reads=(*PROMPT_COLUMNS, *SYSTEM_TEXTS, s.TOOLS, *LISTS, *ANSWERS, HISTORY, *BESIDE_PAIR),
    build=lambda row: read_responses(row)[0],
    needs=_needs,
)
"""Not among the formats of pairs: which of them a table is, is asked of pairs alone."""


@dataclass(frozen=True, kw_only=True)
class ResponseReader(PairReader):
    """Reads rows as prompts with their responses; all else is as for pairs."""

    @property
    def known(self) -> Format:
        """What its rows look like."""
        return RESPONSES

    @property
    def schema(self) -> pa.Schema:
        """Schema of every table that `read` returns; the rewards in it are null."""
        prompt = [field for field in self.pair_schema if field.name not in (s.CHOSEN, s.REJECTED)]
        passthrough = [field.remove_metadata() for field in self.passthrough]
        return pa.schema([*prompt, *s.rewarded_fields(self.rewards), *s.OUTCOME_FIELDS, *passthrough])

    def _pairs_of_columns(
        self, table: pa.Table, unwanted: Sequence[int]
    ) -> tuple[Sequence[int], Mapping[str, Sequence[Any]]]:
        del table, unwanted
        raise NotPlain

    def _content(self, row: Row) -> tuple[PairRow, dict[str, Any]]:
        found, texts = read_responses(row)
        check_fields(found, self.pair_schema)
        content = {s.PROMPT: found.prompt, s.RESPONSES: texts, s.TOOLS: found.tools}
        digest = json_digest({**content, s.TEMPLATE_KWARGS: found.template_kwargs})
        return found, {**content, s.TEMPLATE_KWARGS: found.template_kwargs, s.CONTENT_DIGEST: digest}
