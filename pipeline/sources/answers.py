"""A list of answers, each with its rank or its score: Nectar, UltraFeedback's own files, NeMo-RL.

An answer is an object that holds them, or a text whose rank or score stands in a list beside it.
The best answer and the worst make the pair. The lowest rank is the best. Without ranks, the highest score is. The
rewards are the scores or, where there are ranks alone, their negatives.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pipeline.drops import DropRow, Reason
from pipeline.schema import CHOSEN, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind, Row
from pipeline.sources.ranked import number_of, numbers_of, picked, sweet_spot, worst
from pipeline.sources.rows import SYSTEM_TEXTS, Format, PairRow
from pipeline.sources.texts import PROMPT_COLUMNS, has_prompt, with_prompt

LISTS: Final = (
    *("answers", "completions", "responses", "candidates", "outputs", "generations", "responses_and_scores"),
)
TEXTS: Final = ("answer", "completion", "response", "text", "content", "output", "message", "messages")
_RANK: Final = "rank"
_SCORES: Final = ("score", "reward", "rating", "overall_score", "fine-grained_score", "pm_score")
_BESIDE: Final = {
    **dict.fromkeys(("ranks", "ranking", "rankings", _RANK), _RANK),
    **dict.fromkeys(("scores", "ratings", "rewards"), "score"),
}
"""Lists of numbers, and what each of them is called in an answer."""
_ASPECTS: Final = "annotations"  # of UltraFeedback: an object for each aspect, with a Rating
_NOTES: Final = "annotations"  # of CodeUltraFeedback, beside the answers: an object for each model, with a rating
_MODEL: Final = "model"


def _best_worst(row: Row) -> PairRow:
    return _pair(row, worst)


def _sweet_spot(row: Row) -> PairRow:
    return _pair(row, sweet_spot)


def _pair(row: Row, pick_rejected: Callable[[Sequence[float]], int]) -> PairRow:
    answers = _answers_of(row)
    texts = [next((answer[key] for key in TEXTS if answer.get(key) is not None), None) for answer in answers]
    scores = [_score_of(answer) for answer in answers]
    rewards = [score for score in scores if score is not None]
    ranks = rewards
    if any(answer.get(_RANK) is not None for answer in answers):
        ranks = [-number_of(answer.get(_RANK)) for answer in answers]
        rewards = ranks if None in scores else rewards
    if len(ranks) < len(answers):
        raise DropRow(Reason.NULL_SCORE)
    return picked(with_prompt(row), texts, ranks, rewards, pick_rejected)


def _answers_of(row: Row) -> list[Mapping[str, Any]]:
    """The answers as objects."""
    answers = next((row[name] for name in LISTS if row.get(name) is not None), None)
    if answers is None:
        raise DropRow(Reason.NULL_FIELD)
    if not isinstance(answers, list):
        raise DropRow(Reason.WRONG_TYPE)
    name = next((name for name in _BESIDE if row.get(name) is not None), None)
    if name is not None and all(isinstance(answer, str) for answer in answers):
        numbers = numbers_of(row[name])
        if len(numbers) != len(answers):
            raise DropRow(Reason.CANDIDATE_COUNT_MISMATCH)
        return [{TEXTS[0]: text, _BESIDE[name]: number} for text, number in zip(answers, numbers, strict=True)]
    if not all(isinstance(answer, Mapping) for answer in answers):
        raise DropRow(Reason.WRONG_TYPE)
    notes = row.get(_NOTES)
    if not isinstance(notes, list) or not all(isinstance(note, Mapping) for note in notes):
        return answers
    of_model = {str(note.get(_MODEL)): note for note in notes}
    return [{**of_model.get(str(answer.get(_MODEL)), {}), **answer} for answer in answers]


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


def _lists_in(columns: Columns) -> tuple[str, ...]:
    """The columns that may hold the answers."""
    has_numbers = any(columns.get(name) is Kind.NUMBERS for name in _BESIDE)
    kinds = {Kind.OTHER, Kind.TEXTS} if has_numbers else {Kind.OTHER}
    return tuple(name for name in LISTS if columns.get(name) in kinds)


def _needs(columns: Columns) -> list[str]:
    lacks = [] if _lists_in(columns) else ["answers (a list of objects, or of texts beside ranks or scores)"]
    return lacks if has_prompt(columns) else [*lacks, "prompt (text or turns)"]


def _claims(columns: Columns, sample: Sequence[Row]) -> bool:
    """Whether the sampled rows hold answers with a rank or a score, and no pair of their own."""
    if {CHOSEN, REJECTED} <= columns.keys():
        return False
    names = _lists_in(columns)
    if any(columns[name] is Kind.TEXTS for name in names):
        return True
    answers: list[Mapping[str, Any]] = []
    for row in sample:
        with contextlib.suppress(DropRow):
            answers += _answers_of(row)
    graded = {_RANK, _ASPECTS, *_SCORES}
    return any(graded & answer.keys() and {*TEXTS} & answer.keys() for answer in answers)


ANSWERS: Final = Format(
    name="answers",
    about="a prompt, and a list of answers as objects with a rank or a score, or as text beside `ranks` or `scores`",
    known_from="Nectar, UltraFeedback, CodeUltraFeedback, NeMo-RL, H4 Stack Exchange",
    wants={},
    reads=(*PROMPT_COLUMNS, *SYSTEM_TEXTS, TOOLS, *LISTS, *_BESIDE, _NOTES),
    claims=_claims,
    build=_best_worst,
    build_sweet_spot=_sweet_spot,
    needs=_needs,
    rewarded_by=lambda columns: _lists_in(columns)[:1],
)
