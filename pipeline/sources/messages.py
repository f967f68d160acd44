"""Message lists, as TRL's conversational formats and alignpot's own tables have them.

messages    a prompt column; the completions may repeat the prompt
implicit    full dialogues; the prompt is what the two share
scored      `messages` with alignpot's own scores or outcomes in further columns
"""

from collections.abc import Sequence
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
from pipeline.sources.columns import TURN_LIKE, Columns, Kind
from pipeline.sources.rows import Format, PairRow, Row
from pipeline.sources.turns import (
    any_pair,
    checked_pair,
    lacking,
    prompt_text_column,
    split_dialogues,
    turns_of,
)

_TURNS: Final = frozenset({Kind.TURNS})
_NO_PROMPT: Final = frozenset({None, Kind.NULL})
_OWN_COLUMNS: Final = frozenset({STATUS, POLICY_LOGP_CHOSEN, REFERENCE_LOGP_CHOSEN})

_CANDIDATES: Final = ("all_generated_responses", "responses", "generations")
_CANDIDATE_SCORES: Final = ("all_rm_scores", "rewards", "ratings")


def has_candidates(columns: Columns) -> bool:
    """Whether any family of scored candidates is there; such tables belong to the formats that read them."""
    return any(
        columns.get(texts) is Kind.TEXTS and columns.get(scores) is Kind.NUMBERS
        for texts, scores in zip(_CANDIDATES, _CANDIDATE_SCORES, strict=True)
    )


def _explicit_needs(columns: Columns) -> list[str]:
    return lacking(columns, {PROMPT: _TURNS, CHOSEN: TURN_LIKE, REJECTED: TURN_LIKE})


def _is_own(columns: Columns) -> bool:
    return not _OWN_COLUMNS.isdisjoint(columns)


def _implicit_needs(columns: Columns) -> list[str]:
    return lacking(columns, {CHOSEN: _TURNS, REJECTED: _TURNS})


def _claims_implicit(columns: Columns, _sample: Sequence[Row]) -> bool:
    no_prompt = columns.get(PROMPT) in _NO_PROMPT and prompt_text_column(columns) is None
    return no_prompt and not has_candidates(columns)


def _implicit_pair(row: Row) -> PairRow:
    return checked_pair(*split_dialogues(turns_of(row.get(CHOSEN)), turns_of(row.get(REJECTED))), row)


def _scored_pair(row: Row) -> PairRow:
    if row.get(STATUS) == DROPPED:
        raise DropRow(Reason.DROPPED_BEFORE)
    return any_pair(row)


MESSAGES = Format(
    name="messages",
    about="prompt as a message list; chosen and rejected as the completions, messages or text",
    reads=(PROMPT, CHOSEN, REJECTED, TOOLS),
    needs=_explicit_needs,
    claims=lambda columns, _sample: not _is_own(columns) and not has_candidates(columns),
    build=any_pair,
    layout="turns",
)

IMPLICIT = Format(
    name="implicit",
    about="chosen and rejected as full dialogues in messages; the prompt is their common beginning",
    reads=(CHOSEN, REJECTED, TOOLS),
    needs=_implicit_needs,
    claims=_claims_implicit,
    build=_implicit_pair,
    layout="dialogues",
)

SCORED = Format(
    name="scored",
    about="alignpot's own columns: messages with outcomes or log-probs beside them",
    reads=(PROMPT, CHOSEN, REJECTED, TOOLS, STATUS),
    needs=_explicit_needs,
    claims=lambda columns, _sample: _is_own(columns) and not has_candidates(columns),
    build=_scored_pair,
    layout="turns",
)
