"""Which of the given prompts are held out to measure on, and which of the others are too like them to train on.

Likeness is the Jaccard similarity of sets of word 3-grams, as `pipeline.selection.near_duplicates` defines them. It is
computed exactly here, as the held-out side is small; training prompts are not compared with each other. Compared is all
that is said in a prompt except system turns, which are often the same. Memory: the shingles of the held-out prompts.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.config import Evaluate
from pipeline.drops import Reason
from pipeline.errors import ConfigError
from pipeline.selection.near_duplicates import shingles
from pipeline.selfplay.seeds import by_hash
from pipeline.sources.rows import Turn
from pipeline.steps.rows import drop_rows
from pipeline.words import normalised


def split_held_out(
    table: pa.Table, evaluate: Evaluate, seed: int, similarity: float = 0.8
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The usable prompts to train on, those held out to measure on, and those dropped here, each by id.

    Held out are the `evaluate.num_prompts` prompts whose hash of seed and id is smallest, whatever their order. Of the
    others, those whose similarity to one of them is at least `similarity` are dropped. Rows that were dropped before
    are in none of the three.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    usable = table.filter(pc.not_equal(table.column(s.STATUS), s.DROPPED)).sort_by(s.ID)
    taken = by_hash(usable.column(s.ID).to_pylist(), seed)[: evaluate.num_prompts]
    is_held_out = pc.is_in(usable.column(s.ID), pa.array(taken, pa.string()))
    held_out, rest = usable.filter(is_held_out), usable.filter(pc.invert(is_held_out))
    near = _near(rest.column(s.PROMPT).to_pylist(), held_out.column(s.PROMPT).to_pylist(), similarity)
    if all(near):
        raise ConfigError(
            f"evaluate.num_prompts holds out {evaluate.num_prompts} of {usable.num_rows} prompts and leaves none to "
            f"train on; {len(near)} others are nearly the same. Lower it, or give more prompts."
        )
    is_near = pa.array(near, pa.bool_())
    dropped = rest.filter(is_near)
    reasons = dict.fromkeys(range(dropped.num_rows), Reason.NEAR_HELD_OUT)
    return rest.filter(pc.invert(is_near)), held_out, drop_rows(dropped, reasons, stage="filter")


def _near(prompts: Sequence[Sequence[Turn]], held_out: Sequence[Sequence[Turn]], similarity: float) -> list[bool]:
    """For each prompt, whether a held-out one is at least so similar to it."""
    sizes: list[int] = []
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, prompt in enumerate(held_out):
        found = _shingles_of(prompt)
        sizes.append(len(found))
        for shingle in found:
            places[shingle].append(place)
    near = []
    for prompt in prompts:
        found = _shingles_of(prompt)
        shared = Counter(place for shingle in found for place in places.get(shingle, ()))
        near.append(any(both / (len(found) + sizes[place] - both) >= similarity for place, both in shared.items()))
    return near


def _shingles_of(prompt: Sequence[Turn]) -> set[str]:
    said = [turn["content"] for turn in prompt if turn["role"] != "system"]
    return set(shingles(normalised("\n".join(said))))
