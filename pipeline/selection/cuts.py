"""The thresholds of selections, one a group, with ties settled by id."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.metrics.columns import FloatArray, single_array
from pipeline.metrics.terms import TermCache
from pipeline.selection.counts import GroupCounts
from pipeline.selection.passes import Passes
from pipeline.selection.selection import GroupCut
from pipeline.selection.source import Part
from pipeline.selection.streams import Candidates
from pipeline.selection.threshold import Cut, Search, find_cuts
from pipeline.selection.ties import IdTask, mth_smallest_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """Rows to keep and rows to choose from, by group; one entry where there are no groups.

    whole: keep every candidate, so that no threshold is looked for. found: the cut, where it is known already.
    """

    kept: Mapping[str | None, int]
    available: GroupCounts
    whole: bool = False
    found: Cut | None = None


def find_group_cuts(
    passes: Passes,
    parts: Sequence[Part],
    candidates: Sequence[Candidates],
    quotas: Sequence[Quotas],
    samples: Sequence[FloatArray],
) -> list[tuple[GroupCut, ...]]:
    """The cuts of each set of candidates by the order of its quotas.

    samples: some scores of each set, for first guesses.

    Raises:
        DataError: a score overflows.
        IntegrityError: ids repeat, or the parts do not give the same rows each time.
    """
    searches = [_searches(quota, sample) for quota, sample in zip(quotas, samples, strict=True)]
    active = [i for i, of_set in enumerate(searches) if any(search is not None for search in of_set)]
    streams = [candidates[i] for i in active]
    found = find_cuts(passes, parts, streams, [searches[i] for i in active])
    cuts = dict(zip(active, found, strict=True))
    results = []
    for i, quota in enumerate(quotas):

        def ask(group: int, score: float, task: IdTask, of: Candidates = candidates[i]) -> Iterable[Any]:
            return passes.run(TiedTask(candidates=of, group=group, score=score, task=task), parts)

        of_set = zip(quota.kept, cuts.get(i, [None] * len(quota.kept)), strict=True)
        results.append(tuple(_settled(quota, name, cut, partial(ask, g)) for g, (name, cut) in enumerate(of_set)))
    return results


def _searches(quotas: Quotas, sample: FloatArray) -> list[Search | None]:
    guess = sample if len(quotas.kept) == 1 else np.zeros(0)
    return [
        Search(k, quotas.available[name], guess) if k and not quotas.whole and quotas.found is None else None
        for name, k in quotas.kept.items()
    ]


def _settled(quotas: Quotas, name: str | None, cut: Cut | None, ask: Callable[[float, IdTask], Any]) -> GroupCut:
    """The cut of one group; `ask` puts a question to the ids at a score."""
    k, available = quotas.kept[name], quotas.available[name]
    cut = quotas.found if quotas.found is not None else cut
    if cut is None:
        return GroupCut(threshold=-np.inf if quotas.whole else np.inf, k=k, num_candidates=available)
    num_tied_kept = k - cut.num_above
    boundary_id = None
    if num_tied_kept < cut.num_tied:
        boundary_id = mth_smallest_id(partial(ask, cut.threshold), num_tied_kept, cut.num_tied)
    return GroupCut(
        threshold=cut.threshold,
        boundary_id=boundary_id,
        k=k,
        num_tied=cut.num_tied,
        num_tied_kept=num_tied_kept,
        num_candidates=available,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TiedTask:
    """Asks about the ids of the candidates of one part and group that have exactly this score; picklable."""

    candidates: Candidates
    group: int
    score: float
    task: IdTask

    def __call__(self, part: Part) -> Any:
        """The answer."""
        return self.task(self._ids(part))

    def _ids(self, part: Part) -> Iterator[pa.Array]:
        for block in part.blocks((schema.ID, *self.candidates.columns)):
            scores, mask = self.candidates.scores(block, TermCache(block.rows))
            tied = scores == self.score
            if tied.any():
                rows = self.candidates.rows_by_group(block, tied if mask is None else tied & mask)[self.group]
                yield single_array(block.rows, schema.ID).take(pa.array(rows))
