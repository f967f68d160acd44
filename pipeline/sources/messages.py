"""Message lists, as TRL's conversational formats and alignpot's own tables have them.

messages    a prompt column; the completions may repeat the prompt
implicit    full dialogues; the prompt is what the two share
scored      `messages` with alignpot's own scores or outcomes in further columns
"""

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
    checked_pair,
    completion_of,
    split_dialogues,
    turns_of,
    without_last_answers,
)

_OWN_COLUMNS: Final = frozenset({STATUS, POLICY_LOGP_CHOSEN, REFERENCE_LOGP_CHOSEN})
_EXPLICIT: Final = {PROMPT: TURNS, CHOSEN: TURNS_OR_TEXT, REJECTED: TURNS_OR_TEXT}


def _implicit_pair(row: Row) -> PairRow:
    chosen, rejected = turns_of(row.get(CHOSEN)), completion_of(row.get(REJECTED))
    if isinstance(row.get(REJECTED), str):
        rejected = without_last_answers(chosen) + rejected
    return checked_pair(*split_dialogues(chosen, rejected), row)


def _scored_pair(row: Row) -> PairRow:
    if row.get(STATUS) == DROPPED:
        raise DropRow(Reason.DROPPED_BEFORE)
    return any_pair(row)


MESSAGES = Format(
    name="messages",
    about="prompt as a message list; chosen and rejected as the completions, messages or text",
    wants=_EXPLICIT,
    reads=(PROMPT, *SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS),
    claims=lambda columns, _sample: _OWN_COLUMNS.isdisjoint(columns),
    build=any_pair,
    layout="turns",
)

IMPLICIT = Format(
    name="implicit",
    about="chosen and rejected as full dialogues in messages (or rejected as text); the prompt is their beginning",
    wants={CHOSEN: TURNS, REJECTED: TURNS_OR_TEXT},
    reads=(*SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS),
    claims=lambda columns, _sample: columns.get(PROMPT) in {None, Kind.NULL} and prompt_text_column(columns) is None,
    build=_implicit_pair,
    layout="dialogues",
)

SCORED = Format(
    name="scored",
    about="alignpot's own columns: messages with outcomes or log-probs beside them",
    wants=_EXPLICIT,
    reads=(PROMPT, *SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS, STATUS),
    claims=lambda columns, _sample: not _OWN_COLUMNS.isdisjoint(columns),
    build=_scored_pair,
    layout="turns",
)
