"""Plans flat forwards: completions of one prompt share their common prefix, and nothing is padded.

A group holds the token sequences of one prompt (a pair is a group of two). Its tokens are laid out as the
longest common prefix once, then what is left of each sequence, its branch:

    [ prefix | branch 0 | branch 1 | ... ]

A step is one forward over whole groups, as many as fit a token budget. Planning is pure numpy and depends
on nothing but the groups, their order and the budget, which may move work between steps but never a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

# A matrix product on CPU rounds one way for a few rows and another way for many. Steps and head chunks never
# have fewer rows than this, and always a multiple of it, so that a row's value does not depend on its company.
ROW_MULTIPLE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One token sequence, prompt and response together; `start` is where the response begins."""

    ids: Int32Array
    start: int


Group = Sequence[Completion]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One attention call: query rows see the first `prefix` rows of their group, then themselves causally.

    `query` is a range of the flat step; `prefix` a range of it that lies before, empty for the first segment
    of a group, whose queries are the prefix and the first branch together. Positions run on from the prefix.
    """

    prefix: tuple[int, int]
    query: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One flat forward of T tokens, of which the last ones may be padding that belongs to no segment.

    Attributes:
        ids: token ids, shape (T,).
        positions: position of each token in its own sequence, shape (T,).
        segments: the attention calls; their query ranges cover every row but the padding once.
        rows: rows whose hidden state is read, ascending and distinct, shape (R,).
        target_rows: index into `rows` for each scored token, shape (N,).
        targets: the token scored there, shape (N,).
        target_sequences: which sequence of the step it belongs to, ascending, shape (N,).
        num_sequences: sequences in the step, in the order of the groups.
    """

    ids: Int32Array
    positions: Int32Array
    segments: tuple[Segment, ...]
    rows: Int64Array
    target_rows: Int64Array
    targets: Int64Array
    target_sequences: Int64Array
    num_sequences: int

    @property
    def last_query(self) -> int:
        """Tokens of the step without its padding."""
        return max(segment.query[1] for segment in self.segments)


def shared_prefix(group: Group) -> int:
    """Number of leading tokens that all sequences of the group have in common."""
    shortest = min(len(c.ids) for c in group)
    length = shortest
    for completion in group[1:]:
        differs = np.flatnonzero(group[0].ids[:length] != completion.ids[:length])
        length = int(differs[0]) if differs.size else length
    return length


def num_packed_tokens(group: Group) -> int:
    """Tokens that a group takes in a step."""
    prefix = shared_prefix(group)
    return prefix + sum(len(c.ids) - prefix for c in group)


def step_end(groups: Sequence[Group], begin: int, token_budget: int) -> int:
    """End of the range of groups from `begin` that fits the budget; at least one group, however long."""
    tokens = num_packed_tokens(groups[begin])
    for index in range(begin + 1, len(groups)):
        tokens += num_packed_tokens(groups[index])
        if tokens > token_budget:
            return index
    return len(groups)


def response_step(groups: Sequence[Group]) -> Step:
    """A step that reads the rows which predict response tokens: the row before each of them.

    Raises:
        ModelError: a response starts at its sequence's first token, which nothing predicts.
    """
    unpredicted = [i for i, c in enumerate(c for group in groups for c in group) if c.start < 1]
    if unpredicted:
        raise ModelError(f"Sequences {unpredicted[:5]} have no token before the response; wanted at least one.")
    return _lay_out(groups, [[np.arange(c.start, len(c.ids)) for c in group] for group in groups], shift=1)


def last_token_step(groups: Sequence[Group], last: Sequence[Sequence[int]]) -> Step:
    """A step that reads one row a sequence, at index `last` of it; its targets are the tokens there."""
    return _lay_out(groups, [[np.asarray([i]) for i in indices] for indices in last], shift=0)


def _lay_out(groups: Sequence[Group], read: Sequence[Sequence[npt.NDArray[np.intp]]], *, shift: int) -> Step:
    ids: list[Int32Array] = []
    positions: list[npt.NDArray[np.intp]] = []
    segments: list[Segment] = []
    rows: list[Int64Array] = []
    targets: list[Int64Array] = []
    counts: list[int] = []
    base = 0
    for group, tokens_read in zip(groups, read, strict=True):
        prefix = shared_prefix(group)
        edges = np.cumsum([base + prefix, *(len(c.ids) - prefix for c in group)]).tolist()
        ids += [group[0].ids[:prefix], *(c.ids[prefix:] for c in group)]
        positions += [np.arange(begin, end) for begin, end in [(0, prefix), *((prefix, len(c.ids)) for c in group)]]
        segments += _segments(base, prefix, edges)
        for completion, tokens, branch in zip(group, tokens_read, edges, strict=False):
            at = tokens - shift
            rows.append(np.where(at < prefix, base + at, branch + at - prefix))
            targets.append(completion.ids[tokens].astype(np.int64))
            counts.append(len(tokens))
        base = edges[-1]
    padding = -base % ROW_MULTIPLE
    unique, target_rows = np.unique(np.concatenate(rows), return_inverse=True)
    return Step(
        ids=np.concatenate([*ids, np.zeros(padding, np.int32)]).astype(np.int32),
        positions=np.concatenate([*positions, np.zeros(padding, np.int32)]).astype(np.int32),
        segments=tuple(segments),
        rows=unique.astype(np.int64),
        target_rows=target_rows.astype(np.int64),
        targets=np.concatenate(targets),
        target_sequences=np.repeat(np.arange(len(counts)), counts),
        num_sequences=len(counts),
    )


def _segments(base: int, prefix: int, edges: Sequence[int]) -> list[Segment]:
    first, *others = pairwise(edges)
    found = [Segment(prefix=(base, base), query=(base, first[1]))] if first[1] > base else []
    return found + [Segment(prefix=(base, base + prefix), query=branch) for branch in others if branch[1] > branch[0]]
