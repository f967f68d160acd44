"""What looks wrong about pairs that can be read: said by `inspect`, some of it by `run`, and left to people to judge.

Answers that repeat the prompt, judges who disagree, and texts that hold a template, JSON or places of images.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pipeline.schema import CHOSEN, REJECTED
from pipeline.sources.rows import PairRow, Turn

_SHORTEST_PROMPT = 10  # characters; an answer to "Hello" may well begin with it
_SHARE = 0.05  # of the pairs; a few answers repeat the question by themselves
_TEMPLATED: Final = re.compile(
    r"<\|im_(?:start|end)\|>|<\|start_header_id\|>|<\|eot_id\|>|<\|begin_of_text\|>|\[/?INST\]|<(?:start|end)_of_turn>"
    r"|<\|(?:user|assistant|system|end)\|>|<\uff5c(?:User|Assistant)\uff5c>|<\|START_OF_TURN_TOKEN\|>|<\|start\|>|<\|endoftext\|>"
)
_IMAGE: Final = re.compile(r"<(?:image|video|audio)>")


def oddities(pairs: Sequence[PairRow]) -> list[str]:
    """One line for each thing that looks wrong about a sample."""
    num_repeating = sum(map(_repeats_prompt, pairs))
    sides_of: defaultdict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        sides = {CHOSEN: json.dumps(pair.chosen), REJECTED: json.dumps(pair.rejected)}
        key = json.dumps([pair.prompt, pair.tools, sorted(sides.values())])
        sides_of[key].append(sides[CHOSEN])
    num_disagreed = sum(len(chosen) for chosen in sides_of.values() if len({*chosen}) > 1)
    lines = _of_most_texts(pairs)
    if num_repeating > _SHARE * len(pairs):
        lines.append(
            f"in {num_repeating:,} pairs of the sample an answer begins with the text of its prompt, which is then "
            "scored as part of the answer; take it out of the answers"
        )
    if num_disagreed:
        lines.append(
            f"{num_disagreed:,} pairs of the sample hold two answers that another pair prefers the other way round; "
            "set select.disagreement to majority or drop"
        )
    return lines


def _repeats_prompt(pair: PairRow) -> bool:
    asked = _text_of(next((turn for turn in reversed(pair.prompt) if turn["role"] == "user"), {}))
    answers = (_text_of(side[0]) for side in (pair.chosen, pair.rejected))
    return len(asked) >= _SHORTEST_PROMPT and any(answer.startswith(asked) for answer in answers)


def _text_of(turn: Turn) -> str:
    return (turn.get("content") or "").strip()


def _of_most_texts(pairs: Sequence[PairRow]) -> list[str]:
    """One line for each problem of texts that more than half of the pairs have."""
    return [
        text for is_odd, text in _PROBLEMS if 2 * sum(any(map(is_odd, _texts(pair))) for pair in pairs) > len(pairs)
    ]


def json_problem(pairs: Sequence[PairRow]) -> str | None:
    """The problem that texts hold messages as JSON, if most pairs have it."""
    return next((text for text in _of_most_texts(pairs) if text == _JSON), None)


def _texts(pair: PairRow) -> Iterator[str]:
    for turn in (*pair.prompt, *pair.chosen, *pair.rejected):
        yield turn.get("content", "")


def _is_messages(text: str) -> bool:
    """Whether a text is JSON of a message or of a list of messages."""
    if text.lstrip()[:1] not in ("[", "{") or '"role"' not in text:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and "role" in first


_JSON: Final = (
    "the texts hold messages as JSON text, which models would read as it is: parse them, so that the columns are lists "
    "of messages"
)
_PROBLEMS: Final[tuple[tuple[Callable[[str], object], str], ...]] = (
    (
        _TEMPLATED.search,
        "the texts seem to be templated already, and a chat template would be applied again: set tokens.template: none",
    ),
    (_is_messages, _JSON),
    (_IMAGE.search, "the texts hold places of images, audio or video, which are not there"),
)
