"""Message lists, as TRL's conversational formats and alignpot's own tables have them.

messages    a prompt column; the completions may repeat the prompt
implicit    full dialogues; the prompt is what the two share
scored      `messages` with alignpot's own scores or outcomes in further columns
openai      the preference files of fine-tuning services: the prompt is in `input`
"""

from collections.abc import Mapping
from typing import Final

from pipeline.drops import DropRow, Reason
from pipeline.schema import (
    CHOSEN,
    DROPPED,
    POLICY_LOGP_CHOSEN,
    PROMPT,
    REFERENCE_LOGP_CHOSEN,
    REJECTED,
    STATUS,
    TOOLS,
)
from pipeline.sources.columns import Kind, Row
from pipeline.sources.rows import SYSTEM_TEXTS, TURNS, TURNS_OR_TEXT, Format, PairRow, prompt_text_column
from pipeline.sources.turns import (
    any_pair,
    begun,
    checked_pair,
    completion_of,
    split_dialogues,
    turns_of,
    without_last_answers,
)

_OWN_COLUMNS: Final = frozenset({STATUS, POLICY_LOGP_CHOSEN, REFERENCE_LOGP_CHOSEN})
_EXPLICIT: Final = {PROMPT: TURNS, CHOSEN: TURNS_OR_TEXT, REJECTED: TURNS_OR_TEXT}
_PREFERRED: Final = ("preferred_output", "non_preferred_output")


def _implicit_pair(row: Row) -> PairRow:
    chosen, rejected = turns_of(row.get(CHOSEN)), completion_of(row.get(REJECTED))
    if isinstance(row.get(REJECTED), str):
        rejected = without_last_answers(chosen) + rejected
    return checked_pair(*split_dialogues(chosen, rejected), row)


def _scored_pair(row: Row) -> PairRow:
    if row.get(STATUS) == DROPPED:
        raise DropRow(Reason.DROPPED_BEFORE)
    turns = turns_of(row.get(PROMPT))
    if turns and turns[-1]["role"] == "assistant" and "content" in turns[-1]:
        return begun(any_pair({**row, PROMPT: turns[:-1]}), turns[-1]["content"])
    return any_pair(row)


def _openai_pair(row: Row) -> PairRow:
    given = row.get("input")
    about = given if isinstance(given, Mapping) else {"messages": given}
    chosen, rejected = (row.get(name) for name in _PREFERRED)
    own = {PROMPT: about.get("messages"), CHOSEN: chosen, REJECTED: rejected, TOOLS: about.get("tools")}
    return any_pair({**row, **own})


MESSAGES = Format(
    name="messages",
    about="`prompt` as a message list; `chosen` and `rejected` as the answers, message lists or text",
    known_from="TRL, OpenRLHF",
    wants=_EXPLICIT,
    reads=(PROMPT, *SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS),
    claims=lambda columns, _sample: _OWN_COLUMNS.isdisjoint(columns),
    build=any_pair,
    layout="turns",
)

IMPLICIT = Format(
    name="implicit",
    about="`chosen` and `rejected` as whole dialogues, or `rejected` as text; the prompt is the beginning of both",
    known_from="TRL's reward trainer, Skywork",
    wants={CHOSEN: TURNS, REJECTED: TURNS_OR_TEXT},
    reads=(*SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS),
    claims=lambda columns, _sample: columns.get(PROMPT) in {None, Kind.NULL} and prompt_text_column(columns) is None,
    build=_implicit_pair,
    layout="dialogues",
)

SCORED = Format(
    name="scored",
    about="the columns of `messages` with outcomes or log-probs beside them",
    known_from="alignpot",
    wants=_EXPLICIT,
    reads=(PROMPT, *SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS, STATUS),
    claims=lambda columns, _sample: not _OWN_COLUMNS.isdisjoint(columns),
    build=_scored_pair,
    layout="turns",
)

OPENAI = Format(
    name="openai",
    about="`input` with `messages` and `tools`; `preferred_output` and `non_preferred_output`",
    known_from="files of OpenAI, Azure, Together and Fireworks",
    wants=dict.fromkeys(_PREFERRED, TURNS_OR_TEXT),
    reads=("input", *_PREFERRED),
    build=_openai_pair,
)
