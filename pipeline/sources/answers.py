"""A list of answers as objects, each with its rank or its score: Nectar, UltraFeedback's own files, NeMo-RL.

The best answer and the worst make the pair. The lowest rank is the best. Without ranks, the highest score is. The
rewards are the scores or, where there are ranks alone, their negatives.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pipeline.drops import DropRow, Reason
from pipeline.schema import CHOSEN, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind, Row
from pipeline.sources.ranked import number_of, picked, sweet_spot, worst
from pipeline.sources.rows import SYSTEM_TEXTS, Format, PairRow
from pipeline.sources.texts import PROMPT_COLUMNS, has_prompt, with_prompt

LISTS: Final = ("answers", "completions", "responses", "candidates", "outputs", "generations")
_TEXTS: Final = ("answer", "completion", "response", "text", "content", "output", "message", "messages")
_RANK: Final = "rank"
_SCORES: Final = ("score", "reward", "rating", "overall_score", "fine-grained_score", "pm_score")
_ASPECTS: Final = "annotations"  # of UltraFeedback: an object for each aspect, with a Rating


def _best_worst(row: Row) -> PairRow:
    return _pair(row, worst)


def _sweet_spot(row: Row) -> PairRow:
    return _pair(row, sweet_spot)


def _pair(row: Row, pick_rejected: Callable[[Sequence[float]], int]) -> PairRow:
    answers = next((row[name] for name in LISTS if row.get(name) is not None), None)
    if answers is None:
        raise DropRow(Reason.NULL_FIELD)
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        raise DropRow(Reason.WRONG_TYPE)
    texts = [next((answer[key] for key in _TEXTS if answer.get(key) is not None), None) for answer in answers]
    scores = [_score_of(answer) for answer in answers]
    rewards = [score for score in scores if score is not None]
    ranks = rewards
    if any(answer.get(_RANK) is not None for answer in answers):
        ranks = [-number_of(answer.get(_RANK)) for answer in answers]
        rewards = ranks if None in scores else rewards
    if len(ranks) < len(answers):
        raise DropRow(Reason.NULL_SCORE)
    return picked(with_prompt(row), texts, ranks, rewards, pick_rejected)


def _score_of(answer: Mapping[str, Any]) -> float | None:
    """The score of an answer: the first of its own, or the mean of its ratings."""
    own = next((answer[key] for key in _SCORES if answer.get(key) is not None), None)
    if own is not None:
        return _number(own)
    aspects = answer.get(_ASPECTS)
    ratings = [
        _number(aspect["Rating"])
        for aspect in (aspects.values() if isinstance(aspects, Mapping) else ())
        if isinstance(aspect, Mapping) and aspect.get("Rating") not in {None, "N/A"}
    ]
    return sum(ratings) / len(ratings) if ratings else None


def _number(value: Any) -> float:
    try:
        return number_of(float(value) if isinstance(value, str) else value)
    except ValueError:
        raise DropRow(Reason.WRONG_TYPE) from None


def _needs(columns: Columns) -> list[str]:
    lacks = [] if any(columns.get(name) is Kind.OTHER for name in LISTS) else ["answers (a list of objects)"]
    return lacks if has_prompt(columns) else [*lacks, "prompt (text or turns)"]


def _claims(columns: Columns, sample: Sequence[Row]) -> bool:
    """Whether the sampled rows hold answers with a rank or a score, and no pair of their own."""
    if {CHOSEN, REJECTED} <= columns.keys():
        return False
    lists = (row[name] for row in sample for name in LISTS if isinstance(row.get(name), list))
    answers = [answer for answers in lists for answer in answers if isinstance(answer, Mapping)]
    graded = {_RANK, _ASPECTS, *_SCORES}
    return any(graded & answer.keys() and {*_TEXTS} & answer.keys() for answer in answers)


ANSWERS: Final = Format(
    name="answers",
    about="a list of answers as objects with a rank or a score, such as `answers` or `completions`, and a prompt",
    known_from="Nectar, UltraFeedback, NeMo-RL, H4 Stack Exchange",
    wants={},
    reads=(*PROMPT_COLUMNS, *SYSTEM_TEXTS, TOOLS, *LISTS),
    claims=_claims,
    build=_best_worst,
    build_sweet_spot=_sweet_spot,
    needs=_needs,
    rewarded_by=lambda columns: tuple(name for name in LISTS if columns.get(name) is Kind.OTHER)[:1],
)
