"""UltraFeedback and its kin: dialogues beside a prompt text, and candidates with a reward each.

    binarized    UltraFeedback-binarized: prompt text, chosen and rejected as full dialogues
    candidates   SimPO's sets and the paper's: all_generated_responses, all_rm_scores, and mostly chosen and rejected
    responses    Online-RLHF: prompt, responses, rewards
    judged       distilabel: generations and ratings, mostly with chosen and rejected made of them
    rated        Orca DPO pairs: chosen, rejected, and a list of their two ratings

Candidates give each side its reward: that of the candidate whose text is the side's last turn. Where a row names no
chosen and rejected, they are the candidates of the highest and the lowest reward, the first one on a tie.

Sweet-spot pairs are picked from the candidates even if the row names a pair. Chosen has the highest reward. Rejected
has the reward nearest to mean - 2 x population standard deviation (arXiv 2502.16825). The first one wins a tie. Among
five candidates or fewer no reward is lower than that, so the two ways differ from six candidates on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from pipeline.drops import Drop, DropRow, Reason
from pipeline.schema import CHOSEN, PROMPT, REJECTED, TOOLS
from pipeline.sources.columns import Kind, Row
from pipeline.sources.rows import PROMPT_TEXTS, SYSTEM_TEXTS, TEXT, TURNS, Format, PairRow, Rewards, Turn
from pipeline.sources.turns import any_pair, completion_of, text_of, without_last_answers

_GENERATIONS: Final = "generations"
_ORDER: Final = "order"
_RATING: Final = "rating"
_ORIGINALS: Final = {CHOSEN: "original_chosen", REJECTED: "original_rejected"}
_READS: Final = (*PROMPT_TEXTS, *SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS)


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


def worst(scores: Sequence[float]) -> int:
    """Index of the lowest score, or DropRow if all are the same."""
    if max(scores) == min(scores):
        raise DropRow(Reason.TIED_REWARDS)
    return scores.index(min(scores))


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


def picked(
    row: Row,
    answers: Sequence[Any],
    ranks: Sequence[float],
    rewards: Sequence[float],
    pick_rejected: Callable[[Sequence[float]], int],
) -> PairRow:
    """The pair of the answer that ranks highest and of the one that `pick_rejected` picks, with their rewards.

    answers: texts or messages. The rest of the row gives the prompt.
    """
    if len(answers) < 2:
        raise DropRow(Reason.TOO_FEW_CANDIDATES)
    best, other = ranks.index(max(ranks)), pick_rejected(ranks)
    pair = any_pair({**row, CHOSEN: answers[best], REJECTED: answers[other]})
    found = Rewards(chosen=rewards[best], rejected=rewards[other], all=tuple(rewards))
    return replace(pair, rewards=found, picked=True)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Builds pairs of rows that hold K candidate texts and a reward for each, in these columns."""

    texts: str
    scores: str

    def pair(self, row: Row) -> PairRow:
        """The pair that the row names, or that of the best and the worst candidate."""
        if row.get(CHOSEN) is None and row.get(REJECTED) is None:
            return self._picked(row, worst)
        pair = any_pair(row)
        try:
            texts, scores = self._read(row)
            chosen, rejected = (
                _score_of(side[-1].get("content", ""), texts, scores) for side in (pair.chosen, pair.rejected)
            )
        except DropRow as drop:
            return replace(pair, rewards=Drop(drop.reason))
        return replace(pair, rewards=Rewards(chosen=chosen, rejected=rejected, all=scores))

    def sweet_spot_pair(self, row: Row) -> PairRow:
        """The pair of the best and the sweet-spot candidate. A pair that the row names gives only its prompt."""
        prompt = _prompt_in_dialogues(row)
        return self._picked(row if prompt is None else {**row, PROMPT: prompt}, sweet_spot)

    def _picked(self, row: Row, pick_rejected: Callable[[Sequence[float]], int]) -> PairRow:
        texts, scores = self._read(row)
        return picked(row, texts, scores, scores, pick_rejected)

    def _read(self, row: Row) -> tuple[list[str], tuple[float, ...]]:
        texts = row.get(self.texts)
        if texts is None:
            raise DropRow(Reason.NULL_FIELD)
        if not isinstance(texts, list):
            raise DropRow(Reason.WRONG_TYPE)
        scores = numbers_of(row.get(self.scores))
        if len(texts) != len(scores):
            raise DropRow(Reason.CANDIDATE_COUNT_MISMATCH)
        return [text_of(text) for text in texts], scores


def _candidates_format(name: str, texts: str, scores: str, known_from: str) -> Format:
    """The format of rows with these two columns. It claims every such table; two families in one are ambiguous."""
    candidates = _Candidates(texts, scores)
    return Format(
        name=name,
        about=f"`{texts}` with `{scores}`, and a prompt, or `chosen` and `rejected`",
        known_from=known_from,
        wants={texts: frozenset({Kind.TEXTS}), scores: frozenset({Kind.NUMBERS})},
        prompt="any",
        reads=(*_READS, texts, scores),
        build=candidates.pair,
        build_sweet_spot=candidates.sweet_spot_pair,
        layout="turns",
        candidates=(texts, scores),
    )


def _prompt_in_dialogues(row: Row) -> list[Turn] | None:
    """The prompt in the dialogues of the pair that a row names; None if the prompt is in a column of its own."""
    if row.get(CHOSEN) is None or row.get(REJECTED) is None or isinstance(row.get(PROMPT), (list, Mapping)):
        return None
    try:
        return any_pair(row).prompt
    except DropRow as drop:
        if drop.reason not in {Reason.IDENTICAL_RESPONSES, Reason.EMPTY_RESPONSE}:
            raise
    turns = without_last_answers(completion_of(row[CHOSEN]))
    return turns if turns and turns[0]["role"] != "assistant" else None


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


def _binarized_pair(row: Row) -> PairRow:
    if isinstance(row.get(PROMPT), (list, Mapping)):
        raise DropRow(Reason.WRONG_TYPE)
    return any_pair(row)


def _rated_pair(row: Row) -> PairRow:
    """The pair that the row names, unless its ratings are the same. `order` speaks of the answers before any swap."""
    texts, order = row.get(_GENERATIONS), row.get(_ORDER)
    if texts is None and isinstance(order, list):
        names = ((_ORIGINALS[side], side) for side in order if side in _ORIGINALS)
        texts = [row.get(original) or row.get(side) for original, side in names]
    pair = _Candidates(_GENERATIONS, _RATING).pair({**row, _GENERATIONS: texts})
    if isinstance(pair.rewards, Rewards) and pair.rewards.chosen == pair.rewards.rejected:
        raise DropRow(Reason.TIED_REWARDS)
    return pair


BINARIZED = Format(
    name="binarized",
    about="`prompt` as text; `chosen` and `rejected` as whole dialogues, or as answers, in message lists",
    known_from="UltraFeedback-binarized, Tulu and OLMo preference mixtures",
    wants={CHOSEN: TURNS, REJECTED: TURNS},
    prompt="text",
    reads=_READS,
    claims=lambda columns, _sample: columns.get(PROMPT) is not Kind.TURNS,
    build=_binarized_pair,
    layout="texts",
)
CANDIDATES = _candidates_format("candidates", "all_generated_responses", "all_rm_scores", "SimPO and the paper")
RESPONSES = _candidates_format("responses", "responses", "rewards", "Online-RLHF")
JUDGED = _candidates_format("judged", _GENERATIONS, "ratings", "distilabel")
RATED = Format(
    name="rated",
    about="a prompt, `chosen` and `rejected` as text; `rating` has their scores, in the order that `order` tells",
    known_from="Argilla's Orca DPO pairs",
    wants={CHOSEN: TEXT, REJECTED: TEXT, _ORDER: frozenset({Kind.TEXTS}), _RATING: frozenset({Kind.NUMBERS})},
    prompt="text",
    reads=(*_READS, *_ORIGINALS.values(), _GENERATIONS, _ORDER, _RATING),
    build=_rated_pair,
    candidates=(_ORDER, _RATING),
    rewarded_by=lambda _columns: (_RATING,),
)
