"""Plans flat forwards: completions of one prompt share their common prefix, and nothing is padded.

A group holds the token sequences of one prompt: a pair, or all K completions of it. The first is laid out whole. Each
other one follows the earlier sequence with the longest common prefix, and only its own branch is laid out:

    [ sequence 0 | branch 1 | branch 2 | ... ]

So every distinct prefix of a group is computed once: the prompt, an opening that some responses share, a response that
was drawn twice. Groups of one prompt, such as its other pairs, stand beside each other in a step. The first sequence of
a group takes over what it shares with that of the group before it, in whole blocks of attention, and equal responses
are laid out once. So each call of attention has the shape that it has for the group alone, and gives the same bits.

A step is one forward over as many whole groups as fit a token budget. Order and budget move work between steps. On a
CPU they change no number, with two exceptions: mixtures of experts, and half precision on a CPU with tiles. Planning is
pure numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

Range = tuple[int, int]
"""Begin and end of consecutive rows of a step."""

# A matrix product on CPU rounds differently for few rows and for many. Steps and head chunks always have a multiple of
# this many rows, so a row's value does not depend on the rows beside it (exceptions above).
ROW_MULTIPLE: Final = 64


BLOCK_ROWS: Final = 64
"""Queries of one call of attention on a CPU, from the start of a sequence on."""

Sharing = int
"""What groups share with each other: blocks of so many tokens; 0 for nothing. With BLOCK_ROWS no number of a CPU moves:
a row is computed in a call of the same shape as without sharing. With 1, each token of a common prefix is shared."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One token sequence, prompt and response together; `start` is where the response begins."""

    ids: Int32Array
    start: int


Group = Sequence[Completion]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One attention call: query rows see the rows of `context`, then themselves causally.

    `query` is a range of the flat step. `context` are ranges before it, in the order of their positions, and empty for
    the first segment of a group, unless it shares rows with another group. Positions of the query continue those of
    the context. is_first: of the first sequence of its group, so that its blocks go by its positions.
    """

    context: tuple[Range, ...]
    query: Range
    is_first: bool = True

    @property
    def num_context(self) -> int:
        """Rows of the context."""
        return sum(end - begin for begin, end in self.context)

    @property
    def num_queries(self) -> int:
        """Rows of the query."""
        return self.query[1] - self.query[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One flat forward of T tokens; the last ones may be padding that belongs to no segment.

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


def common_prefix(first: Int32Array, second: Int32Array) -> int:
    """Number of leading tokens that two sequences share."""
    shortest = min(len(first), len(second))
    differs = np.flatnonzero(first[:shortest] != second[:shortest])
    return int(differs[0]) if differs.size else shortest


def num_packed_tokens(group: Group) -> int:
    """Tokens that a group takes in a step: one for each distinct prefix of its sequences."""
    return sum(len(c.ids) - shared for c, (_, shared) in zip(group, _origins(group), strict=True))


def num_step_tokens(groups: Sequence[Group], sharing: Sharing) -> int:
    """Tokens that groups take in one step, in this order; a little fewer where responses are equal."""
    shared = (_shared_by_firsts(before[0].ids, group[0].ids, sharing) for before, group in pairwise(groups))
    return sum(map(num_packed_tokens, groups)) - sum(shared)


def sharing_order(groups: Sequence[Group]) -> list[int]:
    """An order in which groups that begin with the same block stand beside each other, those most alike together."""
    firsts: dict[bytes, int] = {}
    places = [firsts.setdefault(group[0].ids[:BLOCK_ROWS].tobytes(), i) for i, group in enumerate(groups)]
    return sorted(range(len(groups)), key=lambda i: (places[i], groups[i][0].ids.astype(">u4").tobytes()))


def step_end(groups: Sequence[Group], begin: int, token_budget: int, sharing: Sharing = 0) -> int:
    """End of the range of groups from `begin` that fits the budget; at least one group, however long."""
    tokens = num_packed_tokens(groups[begin])
    for index in range(begin + 1, len(groups)):
        shared = _shared_by_firsts(groups[index - 1][0].ids, groups[index][0].ids, sharing)
        tokens += num_packed_tokens(groups[index]) - shared
        if tokens > token_budget:
            return index
    return len(groups)


def check_predicted(groups: Sequence[Group]) -> None:
    """Check that every response has a token before it.

    Raises a ModelError if a response starts at its sequence's first token: nothing predicts that one.
    """
    unpredicted = [i for i, c in enumerate(c for group in groups for c in group) if c.start < 1]
    if unpredicted:
        raise ModelError(f"Sequences {unpredicted[:5]} have no token before the response; wanted at least one.")


def response_step(groups: Sequence[Group], row_multiple: int = ROW_MULTIPLE, sharing: Sharing = 0) -> Step:
    """A step that reads the rows that predict response tokens: the row before each of them.

    The step is padded to a multiple of `row_multiple` tokens. Raises as `check_predicted`.
    """
    check_predicted(groups)
    read = [[np.arange(c.start, len(c.ids)) for c in group] for group in groups]
    return _lay_out(groups, read, row_multiple, sharing, shift=1)


def last_token_step(
    groups: Sequence[Group],
    last: Sequence[Sequence[int]],
    row_multiple: int = ROW_MULTIPLE,
    sharing: Sharing = 0,
) -> Step:
    """A step that reads one row a sequence, at index `last` of it; its targets are the tokens there."""
    return _lay_out(groups, [[np.asarray([i]) for i in indices] for indices in last], row_multiple, sharing, shift=0)


def _lay_out(
    groups: Sequence[Group],
    read: Sequence[Sequence[npt.NDArray[np.intp]]],
    row_multiple: int,
    sharing: Sharing,
    *,
    shift: int,
) -> Step:
    ids: list[Int32Array] = []
    positions: list[npt.NDArray[np.intp]] = []
    segments: list[Segment] = []
    rows: list[Int64Array] = []
    targets: list[Int64Array] = []
    counts: list[int] = []
    layout = _Layout(sharing=sharing)
    for group, tokens_read in zip(groups, read, strict=True):
        laid_out = layout.add(group)
        for place, (completion, tokens, (path, known)) in enumerate(zip(group, tokens_read, laid_out, strict=True)):
            ids.append(completion.ids[known:])
            positions.append(np.arange(known, len(completion.ids)))
            if known < len(path):
                query = int(path[known]), int(path[-1]) + 1
                segments.append(Segment(context=_runs(path[:known]), query=query, is_first=place == 0))
            rows.append(path[tokens - shift])
            targets.append(completion.ids[tokens].astype(np.int64))
            counts.append(len(tokens))
    padding = -layout.num_rows % row_multiple
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


@dataclass(slots=True, kw_only=True)
class _Layout:
    """The rows of a step while its groups are laid out, one after another.

    branches: rows of the branches that are there, by what decides their numbers. first: ids and rows of the first
    sequence of the last group.
    """

    sharing: Sharing
    num_rows: int = 0
    branches: dict[bytes, Int64Array] = field(default_factory=dict)
    first: tuple[Int32Array, Int64Array] = (np.zeros(0, np.int32), np.zeros(0, np.int64))

    def add(self, group: Group) -> list[tuple[Int64Array, int]]:
        """For each sequence, the rows of its tokens, and how many of the first ones were there already."""
        found: list[tuple[Int64Array, int]] = []
        for place, (completion, (origin, shared)) in enumerate(zip(group, _origins(group), strict=True)):
            key, context, known = None, self.first[1], _shared_by_firsts(self.first[0], completion.ids, self.sharing)
            if place:
                context, known = found[origin][0], shared
                key = self._key(completion, group[0], known) if origin == 0 and self.sharing else None
            path = None if key is None else self.branches.get(key)
            if path is None:
                num_new = len(completion.ids) - known
                path = np.concatenate([context[:known], np.arange(self.num_rows, self.num_rows + num_new)])
                self.num_rows += num_new
            else:
                known = len(path)
            if key is not None:
                self.branches[key] = path
            found.append((path, known))
        self.first = group[0].ids, found[0][0]
        return found

    def _key(self, completion: Completion, first: Completion, shared: int) -> bytes:
        """What decides the numbers of a branch of the first sequence."""
        # The last block of the context ends with the first sequence, or is whole.
        end_of_block = min(len(first.ids), -(-shared // self.sharing) * self.sharing)
        return repr((shared, end_of_block)).encode() + completion.ids.tobytes()


def _shared_by_firsts(before: Int32Array, ids: Int32Array, sharing: Sharing) -> int:
    """Tokens that the first sequence of a group takes over from that of the group before it."""
    if not sharing:
        return 0
    shared = common_prefix(before, ids)
    return shared if shared == len(before) == len(ids) else shared // sharing * sharing


def _origins(group: Group) -> list[tuple[int, int]]:
    """For each sequence, the earlier one with the longest common prefix, and the length of that prefix."""
    found = [(0, 0)]
    for index in range(1, len(group)):
        shared = [common_prefix(group[index].ids, earlier.ids) for earlier in group[:index]]
        origin = int(np.argmax(shared))
        found.append((origin, shared[origin]))
    return found


def _runs(rows: Int64Array) -> tuple[Range, ...]:
    """Ascending rows as ranges."""
    if not len(rows):
        return ()
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return tuple((int(rows[begin]), int(rows[end - 1]) + 1) for begin, end in pairwise(cuts))
