"""What is odd about the texts of most sampled pairs: templates that are applied already, JSON, places of images."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pipeline.sources.rows import PairRow

_TEMPLATED: Final = re.compile(
    r"<\|im_(?:start|end)\|>|<\|start_header_id\|>|<\|eot_id\|>|<\|begin_of_text\|>|\[/?INST\]|<(?:start|end)_of_turn>"
    r"|<\|(?:user|assistant|system|end)\|>|<\uff5c(?:User|Assistant)\uff5c>|<\|START_OF_TURN_TOKEN\|>|<\|start\|>|<\|endoftext\|>"
)
_IMAGE: Final = re.compile(r"<(?:image|video|audio)>")


def problems_of_texts(pairs: Sequence[PairRow]) -> list[str]:
    """One line for each problem that more than half of the pairs have."""
    return [
        text for is_odd, text in _PROBLEMS if 2 * sum(any(map(is_odd, _texts(pair))) for pair in pairs) > len(pairs)
    ]


def json_problem(pairs: Sequence[PairRow]) -> str | None:
    """The problem that texts hold messages as JSON, if most pairs have it."""
    return next((text for text in problems_of_texts(pairs) if text == _JSON), None)


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
