"""What looks wrong about pairs that can be read: said by `inspect`, and left to people to judge."""

import json
from collections import defaultdict
from collections.abc import Sequence

from pipeline.schema import CHOSEN, REJECTED
from pipeline.sources.rows import PairRow, Turn

_SHORTEST_PROMPT = 10  # characters; an answer to "Hello" may well begin with it
_SHARE = 0.05  # of the pairs; a few answers repeat the question by themselves


def oddities(pairs: Sequence[PairRow]) -> list[str]:
    """One line for each kind of oddity that some pairs of a sample have, with how many."""
    num_repeating = sum(map(_repeats_prompt, pairs))
    sides_of: defaultdict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        sides = {CHOSEN: json.dumps(pair.chosen), REJECTED: json.dumps(pair.rejected)}
        key = json.dumps([pair.prompt, pair.tools, sorted(sides.values())])
        sides_of[key].append(sides[CHOSEN])
    num_disagreed = sum(len(chosen) for chosen in sides_of.values() if len({*chosen}) > 1)
    lines = []
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
