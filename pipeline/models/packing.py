"""Plans flat forwards: completions of one prompt share their common prefix, and nothing is padded.

A group holds the token sequences of one prompt: a pair, or all K completions of it. The first is laid out whole. Each
other one follows the earlier sequence with the longest common prefix, and only its own branch is laid out:

    [ sequence 0 | branch 1 | branch 2 | ... ]

So every distinct prefix of a group is computed once: the prompt, an opening that some responses share, a response that
was drawn twice. A step is one forward over as many whole groups as fit a token budget. Order and budget move work
between steps. On a CPU they change no number, with two exceptions: mixtures of experts, and half precision on a CPU
with tiles. Planning is pure numpy.
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
Float64Array = npt.NDArray[np.float64]

Range = tuple[int, int]
"""Begin and end of consecutive rows of a step."""

# A matrix product on CPU rounds differently for few rows and for many. Steps and head chunks always have a multiple of
# this many rows, so a row's value does not depend on the rows beside it (exceptions above).
ROW_MULTIPLE: Final = 64


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
    the first segment of a group. Positions of the query continue those of the context.
    """

    context: tuple[Range, ...]
    query: Range

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


def step_end(groups: Sequence[Group], begin: int, token_budget: int) -> int:
    """End of the range of groups from `begin` that fits the budget; at least one group, however long."""
    tokens = num_packed_tokens(groups[begin])
    for index in range(begin + 1, len(groups)):
        tokens += num_packed_tokens(groups[index])
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


def response_step(groups: Sequence[Group], row_multiple: int = ROW_MULTIPLE) -> Step:
    """A step that reads the rows that predict response tokens: the row before each of them.

    The step is padded to a multiple of `row_multiple` tokens. Raises as `check_predicted`.
    """
    check_predicted(groups)
    read = [[np.arange(c.start, len(c.ids)) for c in group] for group in groups]
    return _lay_out(groups, read, row_multiple, shift=1)


def last_token_step(groups: Sequence[Group], last: Sequence[Sequence[int]], row_multiple: int = ROW_MULTIPLE) -> Step:
    """A step that reads one row a sequence, at index `last` of it; its targets are the tokens there."""
    return _lay_out(groups, [[np.asarray([i]) for i in indices] for indices in last], row_multiple, shift=0)


def _lay_out(
    groups: Sequence[Group], read: Sequence[Sequence[npt.NDArray[np.intp]]], row_multiple: int, *, shift: int
) -> Step:
    ids: list[Int32Array] = []
    positions: list[npt.NDArray[np.intp]] = []
    segments: list[Segment] = []
    rows: list[Int64Array] = []
    targets: list[Int64Array] = []
    counts: list[int] = []
    base = 0
    for group, tokens_read in zip(groups, read, strict=True):
        paths: list[Int64Array] = []
        for completion, tokens, (origin, shared) in zip(group, tokens_read, _origins(group), strict=True):
            end = base + len(completion.ids) - shared
            context = paths[origin][:shared] if shared else np.zeros(0, np.int64)
            paths.append(np.concatenate([context, np.arange(base, end)]))
            ids.append(completion.ids[shared:])
            positions.append(np.arange(shared, len(completion.ids)))
            if end > base:
                segments.append(Segment(context=_runs(context), query=(base, end)))
            rows.append(paths[-1][tokens - shift])
            targets.append(completion.ids[tokens].astype(np.int64))
            counts.append(len(tokens))
            base = end
    padding = -base % row_multiple
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
