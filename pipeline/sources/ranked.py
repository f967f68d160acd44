"""UltraFeedback and its kin: dialogues beside a prompt text, and candidates with a reward each.

    binarized    UltraFeedback-binarized: prompt text, chosen and rejected as full dialogues
    candidates   SimPO's sets and the paper's: all_generated_responses, all_rm_scores, and mostly chosen and rejected
    responses    Online-RLHF: prompt, responses, rewards

Candidates give each side its reward: that of the candidate whose text is the side's last turn. Where a row names no
chosen and rejected, they are the candidates of the highest and the lowest reward, the first one on a tie.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Final

from pipeline.schema import CHOSEN, PROMPT, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind
from pipeline.sources.messages import has_candidates
from pipeline.sources.rows import Drop, DropRow, Format, PairRow, Reason, Rewards, Row
from pipeline.sources.turns import (
    PROMPT_TEXT_COLUMNS,
    SYSTEM_TEXT_COLUMNS,
    any_pair,
    completion_of,
    has_any_pair,
    lacking,
    prompt_text_column,
    text_of,
)

_TURNS: Final = frozenset({Kind.TURNS})


def number_of(value: Any) -> float:
    """The value as a finite float, or DropRow."""
    if value is None:
        raise DropRow(Reason.NULL_SCORE)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise DropRow(Reason.WRONG_TYPE)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DropRow(Reason.NON_FINITE_SCORE)
    return number


def numbers_of(value: Any) -> tuple[float, ...]:
    """The values of a list as finite floats, or DropRow."""
    if value is None:
        raise DropRow(Reason.NULL_SCORE)
    if not isinstance(value, list):
        raise DropRow(Reason.WRONG_TYPE)
    return tuple(number_of(item) for item in value)


def candidates_pair(texts_column: str, scores_column: str, row: Row) -> PairRow:
    """The pair of a row that holds K candidate texts and a reward for each."""
    if row.get(CHOSEN) is None and row.get(REJECTED) is None:
        return _picked_pair(row, texts_column, scores_column)
    pair = any_pair(row)
    try:
        texts, scores = _candidates(row, texts_column, scores_column)
        best, worst = (_score_of(turns[-1]["content"], texts, scores) for turns in (pair.chosen, pair.rejected))
        rewards: Rewards | Drop = Rewards(chosen=best, rejected=worst, all=scores)
    except DropRow as drop:
        rewards = Drop(drop.reason)
    return PairRow(prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected, tools=pair.tools, rewards=rewards)


def candidates_need(texts_column: str, scores_column: str, columns: Columns) -> list[str]:
    """What a table lacks to be read as candidates."""
    missing = lacking(columns, {texts_column: frozenset({Kind.TEXTS}), scores_column: frozenset({Kind.NUMBERS})})
    has_prompt = columns.get(PROMPT) is Kind.TURNS or prompt_text_column(columns) or has_any_pair(columns)
    return missing if has_prompt else ["prompt (text or turns)", *missing]


def candidates_format(name: str, texts_column: str, scores_column: str) -> Format:
    """The format of rows with these two columns. It claims every such table; two families in one are ambiguous."""
    return Format(
        name=name,
        about=f"{texts_column} with {scores_column}, and a prompt or chosen and rejected",
        reads=(*PROMPT_TEXT_COLUMNS, *SYSTEM_TEXT_COLUMNS, CHOSEN, REJECTED, TOOLS, texts_column, scores_column),
        needs=partial(candidates_need, texts_column, scores_column),
        claims=lambda _columns, _sample: True,
        build=partial(candidates_pair, texts_column, scores_column),
    )


def _picked_pair(row: Row, texts_column: str, scores_column: str) -> PairRow:
    texts, scores = _candidates(row, texts_column, scores_column)
    if len(texts) < 2:
        raise DropRow(Reason.TOO_FEW_CANDIDATES)
    if max(scores) == min(scores):
        raise DropRow(Reason.TIED_REWARDS)
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    pair = any_pair({**row, CHOSEN: completion_of(texts[best]), REJECTED: completion_of(texts[worst])})
    rewards = Rewards(chosen=scores[best], rejected=scores[worst], all=scores)
    return PairRow(
        prompt=pair.prompt,
        chosen=pair.chosen,
        rejected=pair.rejected,
        tools=pair.tools,
        rewards=rewards,
        picked=True,
    )


def _candidates(row: Row, texts_column: str, scores_column: str) -> tuple[list[str], tuple[float, ...]]:
    texts = row.get(texts_column)
    if texts is None:
        raise DropRow(Reason.NULL_FIELD)
    if not isinstance(texts, list):
        raise DropRow(Reason.WRONG_TYPE)
    scores = numbers_of(row.get(scores_column))
    if len(texts) != len(scores):
        raise DropRow(Reason.CANDIDATE_COUNT_MISMATCH)
    return [text_of(text) for text in texts], scores


def _score_of(answer: str, texts: Sequence[str], scores: Sequence[float]) -> float:
    """The reward of the candidate that equals the answer, first to the letter, else but for outer white space."""
    found = {score for text, score in zip(texts, scores, strict=True) if text == answer}
    if not found:
        found = {score for text, score in zip(texts, scores, strict=True) if text.strip() == answer.strip()}
    if not found:
        raise DropRow(Reason.SCORE_NOT_FOUND)
    if len(found) > 1:
        raise DropRow(Reason.AMBIGUOUS_SCORE)
    return found.pop()


def _binarized_needs(columns: Columns) -> list[str]:
    missing = lacking(columns, {CHOSEN: _TURNS, REJECTED: _TURNS})
    return missing if prompt_text_column(columns) else ["prompt (text)", *missing]


def _binarized_pair(row: Row) -> PairRow:
    if isinstance(row.get(PROMPT), (list, Mapping)):
        raise DropRow(Reason.WRONG_TYPE)
    return any_pair(row)


BINARIZED = Format(
    name="binarized",
    about="prompt as text; chosen and rejected as full dialogues, or answers, in messages",
    reads=(*PROMPT_TEXT_COLUMNS, *SYSTEM_TEXT_COLUMNS, CHOSEN, REJECTED, TOOLS),
    needs=_binarized_needs,
    claims=lambda columns, _sample: columns.get(PROMPT) is not Kind.TURNS and not has_candidates(columns),
    build=_binarized_pair,
)
CANDIDATES = candidates_format("candidates", "all_generated_responses", "all_rm_scores")
RESPONSES = candidates_format("responses", "responses", "rewards")
