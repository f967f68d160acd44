"""Two answers to a prompt, and a label or two scores that say which one is better.

One format reads all such tables, by the names of their columns. The two answers have one of STEMS and one of ENDS as
their names, such as response_a and response_b. One of LABELS says which is better. Two columns of SCORES, with the same
ends, are the rewards; they decide where there is no label.

The answers may be texts, or whole dialogues whose common beginning is the prompt.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from pipeline.drops import Drop, DropRow, Reason
from pipeline.schema import CHOSEN, PROMPT, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind, Row
from pipeline.sources.mapping import says_number
from pipeline.sources.ranked import number_of
from pipeline.sources.rows import SYSTEM_TEXTS, TURNS_OR_TEXT, Format, PairRow, Rewards, Turn
from pipeline.sources.texts import PROMPT_COLUMNS, has_prompt, with_prompt
from pipeline.sources.turns import any_pair, turns_of

STEMS: Final = (
    *("response", "answer", "output", "completion", "generation", "conversation"),
    *("human_ref", "orig_response"),
)
ENDS: Final = (("_0", "_1"), ("_1", "_2"), ("_a", "_b"), ("_A", "_B"), ("0", "1"), ("1", "2"), ("A", "B"))
_ANSWERS: Final = [((stem + ends[0], stem + ends[1]), ends) for stem in STEMS for ends in ENDS]
_SHP: Final = ("human_ref_A", "human_ref_B")
SCORES: Final = ("score", "rating", "reward")
_WINNER: Final = "winner_model"  # with the ends of the answers: 1 for the better one, 0 for the other; both 0 for a tie
_JUDGES: Final = ("annotator1", "annotator2", "annotator3")  # of PandaLM: a label of each; most of them decide
_NUM_ROUNDS: Final = "turn"  # of MT-bench: how many rounds of the two dialogues were judged

_FIRST: Final = frozenset({"a", "first", "left", "a>b", "a>>b"})
_SECOND: Final = frozenset({"b", "second", "right", "b>a", "b>>a"})
_TIES: Final = frozenset({"tie", "tiebothbad", "bothbad", "bothgood", "both", "neither", "draw", "equal", "a=b"})
_BETTER: Final = re.compile(r"[ _-]is[ _-](\w+[ _-])?better$")
_NOUN: Final = re.compile(r"^(model|response|answer|assistant|output|completion|option)[ _-]*")

_Two = tuple[str, str]


def _named(value: Any, names: _Two) -> float:
    """The label ends as the name of the better answer does, or says whether it is the first or the second."""
    text = f"{value:g}" if isinstance(value, float) else str(value).lower().strip()
    text = re.sub(r"[\s\[\]()_-]", "", _NOUN.sub("", _BETTER.sub("", text)))
    first, second = (name[-1].lower() for name in names)
    value = float(value) if isinstance(value, str) and says_number(value) else value
    if isinstance(value, float) and first.isdigit() and int(first) <= value <= int(second):
        return int(first) + 0.5 - value  # the mean of several labels
    if text == first or text in _FIRST:
        return 1.0
    if text == second or text in _SECOND:
        return -1.0
    if text in _TIES or (first.isdigit() and text == f"{int(first) + 0.5:g}") or (first == "1" and text == "0"):
        return 0.0
    raise DropRow(Reason.UNKNOWN_LABEL)


def _signed(value: Any, _names: _Two) -> float:
    """The label is a number below zero where the first answer is better, and above where the second is."""
    return -number_of(value)


def _one_if_first(value: Any, names: _Two) -> float:
    """The label of SHP is 1 where the first answer is better, and 0 where the second is."""
    if names != _SHP or value not in (0, 1):
        raise DropRow(Reason.UNKNOWN_LABEL)
    return 1.0 if value else -1.0


LABELS: Final[dict[str, Callable[[Any, _Two], float]]] = {
    "better_response_id": _named,
    "overall_preference": _signed,
    "preference_strength": _signed,
    **dict.fromkeys(("winner", "overall_pref"), _named),
    "preference": _named,
    "orig_preference": _named,
    **dict.fromkeys(("preferred", "preferred_response", "preferred_answer"), _named),
    **dict.fromkeys(("better", "better_response", "better_answer"), _named),
    "choice": _named,
    CHOSEN: _named,
    "label": _named,
    "labels": _one_if_first,
}
"""By how much the first answer is better: above zero, below, or zero for a tie. The first label in a table decides."""

NUMBERS: Final = (
    *(stem + end for stem in (*SCORES, _WINNER) for ends in ENDS for end in ends),
    *(label for label, lead in LABELS.items() if lead is not _named),
)
"""Columns whose values are numbers, even if they are written as text."""


def _pair(row: Row) -> PairRow:
    there = next((found for found in _ANSWERS if all(row.get(name) is not None for name in found[0])), None)
    if there is None:
        raise DropRow(Reason.NULL_FIELD)
    names, ends = there
    lead = _lead(row, names, ends)
    if lead == 0:
        raise DropRow(Reason.TIE)
    better, worse = (0, 1) if lead > 0 else (1, 0)
    prompt, answers = _sides(row, names)
    pair = any_pair({**row, PROMPT: prompt, CHOSEN: answers[better], REJECTED: answers[worse]})
    try:
        scores = _scores(row, ends)
    except DropRow as drop:
        return replace(pair, rewards=Drop(drop.reason))
    if scores is None:
        return pair
    return replace(pair, rewards=Rewards(chosen=scores[better], rejected=scores[worse], all=scores), picked=True)


def _lead(row: Row, names: _Two, ends: _Two) -> float:
    """By how much the first answer is better."""
    label = _label(row)
    if label is not None:
        return LABELS[label](row[label], names)
    judged = [row[name] for name in _JUDGES if row.get(name) is not None]
    if judged:
        return sum(_named(value, names) for value in judged)
    numbers = _numbers(row, ends, (_WINNER, *SCORES))
    if numbers is None:
        raise DropRow(Reason.NULL_FIELD)
    return numbers[0] - numbers[1]


def _scores(row: Row, ends: _Two) -> tuple[float, float] | None:
    """The scores of the two answers; where there are none, the strength of the preference for the one or the other."""
    label = _label(row)
    scores = _numbers(row, ends, SCORES)
    if scores is not None or label is None or LABELS[label] is not _signed:
        return scores
    lead = -number_of(row[label])
    return max(lead, 0.0), max(-lead, 0.0)


def _label(row: Row) -> str | None:
    return next((name for name in LABELS if row.get(name) is not None), None)


def _sides(row: Row, names: _Two) -> tuple[Any, tuple[Any, Any]]:
    """The prompt and the two answers, as `turns.any_pair` takes them."""
    prompt, first, second = with_prompt(row).get(PROMPT), row[names[0]], row[names[1]]
    rounds = [_rounds(value) for value in (prompt, first, second)]
    if all(rounds) and len({len(texts) for texts in rounds}) == 1:
        first, second = (_dialogue(rounds[0], answers) for answers in rounds[1:])
        return None, (first, second)
    num_rounds = row.get(_NUM_ROUNDS)
    if isinstance(num_rounds, int) and isinstance(first, list) and isinstance(second, list):
        first, second = (_first_rounds(turns_of(dialogue), num_rounds) for dialogue in (first, second))
    return prompt, (first, second)


def _rounds(value: Any) -> list[Any]:
    """The texts of a JSON list of texts, as the Chatbot Arena's files of prompts and responses have them."""
    if not isinstance(value, str) or not value.startswith("["):
        return []
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(text, str) or text is None for text in found) else []


def _dialogue(asked: Sequence[Any], answers: Sequence[Any]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for question, answer in zip(asked, answers, strict=True):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def _first_rounds(dialogue: list[Turn], num_rounds: int) -> list[Turn]:
    """The dialogue without what follows the answer of this round."""
    users = [index for index, turn in enumerate(dialogue) if turn["role"] == "user"]
    return dialogue[: users[num_rounds]] if len(users) > num_rounds > 0 else dialogue


def _numbers(row: Row, ends: _Two, stems: tuple[str, ...]) -> tuple[float, float] | None:
    """The two numbers of the answers with these ends, in the first columns that the row has."""
    stem = next((stem for stem in stems if row.get(stem + ends[0]) is not None), None)
    return None if stem is None else (number_of(row[stem + ends[0]]), number_of(row.get(stem + ends[1])))


def _scores_in(columns: Columns, stems: tuple[str, ...]) -> tuple[str, ...]:
    found = [ends for names, ends in _ANSWERS if {*names} <= columns.keys()]
    every = [(stem + ends[0], stem + ends[1]) for ends in found for stem in stems]
    return next((names for names in every if all(columns.get(name) is Kind.NUMBER for name in names)), ())


def _label_in(columns: Columns) -> str | None:
    return next((name for name in (*LABELS, *_JUDGES) if columns.get(name) in {Kind.TEXT, Kind.NUMBER}), None)


def _rewarded_by(columns: Columns) -> tuple[str, ...]:
    label = _label_in(columns)
    return _scores_in(columns, SCORES) or ((label,) if label is not None and LABELS.get(label) is _signed else ())


def _needs(columns: Columns) -> list[str]:
    answers = [names for names, _ in _ANSWERS if all(columns.get(name) in TURNS_OR_TEXT for name in names)]
    if len(answers) != 1:
        return ["two answers, such as response_a and response_b"]
    decided = _label_in(columns) or _scores_in(columns, (_WINNER, *SCORES))
    lacks = [] if decided else ["winner (text: the better one)"]
    are_dialogues = columns.get(answers[0][0]) is Kind.TURNS
    return lacks if are_dialogues or has_prompt(columns) else [*lacks, "prompt (text or turns)"]


COMPARED: Final = Format(
    name="compared",
    about="two answers, such as `response_a` and `response_b`, and a label of the better one or a score of each",
    known_from="SHP, PKU-SafeRLHF, WebGPT, preferences of HelpSteer2 and 3, Chatbot Arena, MT-bench, "
    "AlpacaFarm, PandaLM, OpenAI's summaries",
    wants={},
    reads=(
        *PROMPT_COLUMNS,
        *SYSTEM_TEXTS,
        TOOLS,
        *(stem + end for stem in STEMS for ends in ENDS for end in ends),
        *NUMBERS,
        *LABELS,
        *_JUDGES,
        _NUM_ROUNDS,
    ),
    claims=lambda columns, _sample: not {CHOSEN, REJECTED} <= columns.keys(),
    build=_pair,
    needs=_needs,
    rewarded_by=_rewarded_by,
)
