"""The rule-based judge behind the demo's preference labels: four plain rules and, where one is known, the right answer.

It reads text only, needs no model, and can be checked by hand. It knows nothing of style, truth beyond the listed
facts, or safety: its verdicts are a stand-in for human labels in a demo and must not be taken for them.
"""

import re
from dataclasses import dataclass
from typing import Final

_WORD: Final = re.compile(r"[A-Za-z0-9']+")
_STEM: Final = 5  # letters compared, so that plant matches plants
_STOP_WORDS: Final = """
    about after answer brief briefly between does each explain every example from give have into keep line
    make many name only please sentence sentences short should show simple some summarise that their them then
    there these they this three turn what when where which will with words write your
"""
_CLOSING: Final = (".", "!", "?", '"', "'", ")", "]", "*", "`", ">", ":)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sampled answer: its text, and whether the model ended it itself rather than hitting the token limit."""

    text: str
    finished: bool


def judge(question: str, answer: Answer, expect: tuple[str, ...] = ()) -> float:
    """Quality of an answer in [0, 1]: the mean of the rules below, the expected facts counting twice.

    on topic    share of the question's content words that the answer takes up, half of them being enough
    no loops    share of distinct word trigrams among all trigrams
    finished    1 if the model ended it itself and it closes like a sentence, 1/2 if only the former, else 0
    length      1 from three words on
    expected    share of the strings in `expect` that the answer contains, if any are known
    """
    words = [word.lower() for word in _WORD.findall(answer.text)]
    rules = [_on_topic(question, words), _distinct(words), _finished(answer), min(1.0, len(words) / 3)]
    if expect:
        rules += [_expected(answer.text, expect)] * 2
    return sum(rules) / len(rules)


def _on_topic(question: str, words: list[str]) -> float:
    stems = {w.lower()[:_STEM] for w in _WORD.findall(question) if len(w) > 3 and w.lower() not in _STOP_WORDS.split()}
    if not stems:
        return 1.0
    return min(1.0, 2 * len(stems & {word[:_STEM] for word in words}) / len(stems))


def _distinct(words: list[str]) -> float:
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 1.0


def _finished(answer: Answer) -> float:
    if not answer.finished:
        return 0.0
    return 1.0 if answer.text.rstrip().endswith(_CLOSING) else 0.5


def _expected(text: str, expect: tuple[str, ...]) -> float:
    found = [
        re.search(rf"(?<!\w){re.escape(item)}" + (r"(?!\w)" if item[-1:].isalnum() else ""), text, re.I)
        for item in expect
    ]
    return sum(match is not None for match in found) / len(expect)
