"""UltraFeedback and its kin: dialogues beside a prompt text, and candidates with a reward each.

    binarized    UltraFeedback-binarized: prompt text, chosen and rejected as full dialogues
    candidates   SimPO's sets and the paper's: all_generated_responses, all_rm_scores, and mostly chosen and rejected
    responses    Online-RLHF: prompt, responses, rewards
    judged       distilabel: generations and ratings, mostly with chosen and rejected made of them

Candidates give each side its reward: that of the candidate whose text is the side's last turn. Where a row names no
chosen and rejected, they are the candidates of the highest and the lowest reward, the first one on a tie.

Sweet-spot pairs are picked from the candidates even if the row names a pair. Chosen has the highest reward. Rejected
has the reward nearest to mean - 2 x population standard deviation (arXiv 2502.16825). The first one wins a tie. Among
five candidates or fewer no reward is lower than that, so the two ways differ from six candidates on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Final

from pipeline.drops import Drop, DropRow, Reason
from pipeline.schema import CHOSEN, PROMPT, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind
from pipeline.sources.messages import has_candidates
from pipeline.sources.rows import Format, PairRow, Rewards, Row, Turn
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
_ANSWERS_UNFIT: Final = frozenset({Reason.IDENTICAL_RESPONSES, Reason.EMPTY_RESPONSE})


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
        return _picked_pair(row, texts_column, scores_column, _worst)
    pair = any_pair(row)
    try:
        texts, scores = _candidates(row, texts_column, scores_column)
        best, worst = (_score_of(turns[-1]["content"], texts, scores) for turns in (pair.chosen, pair.rejected))
        rewards: Rewards | Drop = Rewards(chosen=best, rejected=worst, all=scores)
    except DropRow as drop:
        rewards = Drop(drop.reason)
    return PairRow(prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected, tools=pair.tools, rewards=rewards)


def sweet_spot_pair(texts_column: str, scores_column: str, row: Row) -> PairRow:
    """The pair of the best candidate and the one nearest to two standard deviations below the mean reward.

    A pair that the row names gives its prompt and nothing else.
    """
    prompt = _named_prompt(row)
    return _picked_pair(row if prompt is None else {**row, PROMPT: prompt}, texts_column, scores_column, sweet_spot)


def sweet_spot(scores: Sequence[float]) -> int:
    """Index of the candidate to reject beside the best one of two or more, or DropRow if the two score the same."""
    best = scores.index(max(scores))
    try:
        mean = math.fsum(scores) / len(scores)
        target = mean - 2 * math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    except OverflowError:
        raise DropRow(Reason.NON_FINITE_SCORE) from None
    others = [index for index in range(len(scores)) if index != best]
    nearest = min(others, key=lambda index: abs(scores[index] - target))
    if scores[nearest] == scores[best]:
        raise DropRow(Reason.TIED_REWARDS)
    return nearest


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
        layout="turns",
        candidates=(texts_column, scores_column),
        build_sweet_spot=partial(sweet_spot_pair, texts_column, scores_column),
    )


def _named_prompt(row: Row) -> list[Turn] | None:
    """The prompt in the dialogues of the pair that a row names; None if the prompt is in a column of its own."""
    if row.get(CHOSEN) is None or row.get(REJECTED) is None or isinstance(row.get(PROMPT), (list, Mapping)):
        return None
    try:
        return any_pair(row).prompt
    except DropRow as drop:
        if drop.reason not in _ANSWERS_UNFIT:
            raise
    turns = completion_of(row[CHOSEN])
    while turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return turns if turns and turns[0]["role"] != "assistant" else None


def _worst(scores: Sequence[float]) -> int:
    if max(scores) == min(scores):
        raise DropRow(Reason.TIED_REWARDS)
    return scores.index(min(scores))


def _picked_pair(
    row: Row, texts_column: str, scores_column: str, pick_rejected: Callable[[Sequence[float]], int]
) -> PairRow:
    texts, scores = _candidates(row, texts_column, scores_column)
    if len(texts) < 2:
        raise DropRow(Reason.TOO_FEW_CANDIDATES)
    best, worst = scores.index(max(scores)), pick_rejected(scores)
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
    """The reward of the candidate that equals the answer, first to the letter, else without outer white space."""
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
    layout="texts",
)
CANDIDATES = candidates_format("candidates", "all_generated_responses", "all_rm_scores")
RESPONSES = candidates_format("responses", "responses", "rewards")
JUDGED = candidates_format("judged", "generations", "ratings")
