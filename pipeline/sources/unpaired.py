"""Rows of one answer each, as for KTO or with a score: the rows of one prompt in a file are made into pairs.

With labels, the first true answer and the first false one make a pair, the second ones another, and so on. With scores,
the best answer and the worst one make a pair. The row of the better answer becomes the pair, and the other rows are
dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pipeline.drops import Drop, DropRow, Reason
from pipeline.schema import CHOSEN, PROMPT, REJECTED, TEMPLATE_KWARGS, TOOLS
from pipeline.sources.columns import Columns, Kind, Row
from pipeline.sources.ranked import number_of
from pipeline.sources.rows import SYSTEM_TEXTS, TURNS_OR_TEXT, Format, PairRow, Rewards, json_digest, reason_of
from pipeline.sources.texts import PROMPT_COLUMNS, has_prompt, with_prompt
from pipeline.sources.turns import (
    any_pair,
    prompt_from_texts,
    template_kwargs_of,
    tools_of,
    turns_of,
    without_last_answers,
)

ONE_SCORE: Final = ("score", "reward", "rating", "helpfulness", "overall_score")
"""Columns with the score of a row's answer; the first one that a row has is read."""
ANSWERS: Final = ("completion", "response", "answer", "output", "generation")
_MESSAGES: Final = "messages"  # where there is no other answer, they end with it
_LABELS: Final = ("kto_tag", "label")
_TRUTHS: Final = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_PARTNER: Final = "the pair of this row, or the reason why it has none"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The answer of a row, whose index is here too. `row` has its prompt where `turns.any_pair` looks for it."""

    index: int
    row: Row
    answer: Any
    label: bool | None
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A row that `turns.any_pair` reads, and its rewards if the answers have scores."""

    row: Row
    rewards: Rewards | None


_Found = dict[int, _Pair | Reason]


def _together(rows: Mapping[int, Row | Drop]) -> dict[int, Row | Drop]:
    """The rows of a file by their index, each with its pair or with the reason why it has none."""
    found: _Found = {}
    groups: dict[tuple[str, bool], list[_Answer]] = {}
    for index, row in rows.items():
        if isinstance(row, Drop):
            continue
        try:
            answer = _answer(index, row)
            groups.setdefault((_prompt_key(answer.row), answer.label is None), []).append(answer)
        except Exception as error:  # noqa: BLE001 - reason_of passes on what is not to be blamed on the row
            found[index] = reason_of(error, f"{index} of its file")
    for (_, by_score), group in groups.items():
        found |= _by_score(group) if by_score else _by_label(group)
    return {index: row if isinstance(row, Drop) else {**row, _PARTNER: found[index]} for index, row in rows.items()}


def _by_label(group: Sequence[_Answer]) -> _Found:
    found: _Found = {answer.index: Reason.LONE_ANSWER for answer in group}
    better, worse = ([answer for answer in group if answer.label is label] for label in (True, False))
    for good, bad in zip(better, worse, strict=False):
        found[good.index] = _paired(good, bad, (good, bad))
        found[bad.index] = Reason.ANSWER_OF_A_PAIR
    return found


def _by_score(group: Sequence[_Answer]) -> _Found:
    if len(group) == 1:
        return {group[0].index: Reason.LONE_ANSWER}
    best, worst = (pick(group, key=lambda answer: answer.score or 0.0) for pick in (max, min))
    if best.score == worst.score:
        return {answer.index: Reason.TIE for answer in group}
    others: _Found = {answer.index: Reason.ANSWER_OF_A_PAIR for answer in group}
    return {**others, best.index: _paired(best, worst, group)}


def _paired(better: _Answer, worse: _Answer, group: Sequence[_Answer]) -> _Pair:
    row = {**better.row, CHOSEN: better.answer, REJECTED: worse.answer}
    if better.score is None or worse.score is None:
        return _Pair(row=row, rewards=None)
    scores = tuple(answer.score for answer in group if answer.score is not None)
    return _Pair(row=row, rewards=Rewards(chosen=better.score, rejected=worse.score, all=scores))


def _answer(index: int, row: Row) -> _Answer:
    answer = next((row[name] for name in ANSWERS if row.get(name) is not None), None)
    own = with_prompt(row)
    if answer is None:
        dialogue = turns_of(row.get(_MESSAGES))
        prompt = without_last_answers(dialogue)
        own, answer = {**row, PROMPT: prompt}, dialogue[len(prompt) :]
    label = _label(row)
    score = next((row[name] for name in ONE_SCORE if row.get(name) is not None), None)
    if label is not None and label not in _TRUTHS:
        raise DropRow(Reason.UNKNOWN_LABEL)
    return _Answer(
        index=index,
        row=own,
        answer=answer,
        label=None if label is None else _TRUTHS[label],
        score=None if label is not None and score is None else number_of(score),
    )


def _label(row: Row) -> str | None:
    value = next((row[name] for name in _LABELS if row.get(name) is not None), None)
    return None if value is None else str(value).lower()


def _prompt_key(row: Row) -> str:
    """The same for rows of the same prompt alone."""
    prompt = row.get(PROMPT)
    turns = turns_of(prompt) if isinstance(prompt, (list, Mapping)) else prompt_from_texts(row)
    beside = [tools_of(row.get(TOOLS)), template_kwargs_of(row.get(TEMPLATE_KWARGS))]
    return json_digest([turns, *beside, *map(row.get, SYSTEM_TEXTS)])


def _pair(row: Row) -> PairRow:
    found = row.get(_PARTNER)
    if not isinstance(found, _Pair):
        raise DropRow(found if isinstance(found, Reason) else Reason.LONE_ANSWER)
    return replace(any_pair(found.row), rewards=found.rewards, picked=True)


def _scores_in(columns: Columns) -> tuple[str, ...]:
    return tuple(name for name in ONE_SCORE if columns.get(name) is Kind.NUMBER)[:1]


def _is_labelled(columns: Columns) -> bool:
    return any(columns.get(name) in {Kind.FLAG, Kind.NUMBER, Kind.TEXT} for name in _LABELS)


def _needs(columns: Columns) -> list[str]:
    has_answer = any(columns.get(name) in TURNS_OR_TEXT for name in ANSWERS)
    lacks = [] if has_answer or columns.get(_MESSAGES) is Kind.TURNS else ["completion (text or turns)"]
    lacks += [] if has_prompt(columns) else ["prompt (text or turns)"]
    return lacks if _is_labelled(columns) or _scores_in(columns) else [*lacks, "label (flag) or score (number)"]


def _claims(columns: Columns, sample: Sequence[Row]) -> bool:
    """Whether there is no pair in the rows, and most labels, if there are any, say true or false."""
    labels = [label for label in map(_label, sample) if label is not None]
    return not {CHOSEN, REJECTED} & columns.keys() and 2 * sum(label in _TRUTHS for label in labels) >= len(labels)


UNPAIRED: Final = Format(
    name="unpaired",
    about="a prompt, one answer, such as `completion`, and `label` (true or false) or a score",
    known_from="TRL and LLaMA-Factory (KTO), HelpSteer2",
    wants={},
    reads=(*PROMPT_COLUMNS, *SYSTEM_TEXTS, TOOLS, *ANSWERS, *_LABELS, *ONE_SCORE),
    claims=_claims,
    build=_pair,
    needs=_needs,
    rewarded_by=_scores_in,
    together=_together,
    whole_files=True,
)
