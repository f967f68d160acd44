"""The thresholds of selections, one a group, with ties settled by id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from pipeline.selection.ties import IdQuestion, IdSearch, mth_smallest_id


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
    found_cuts = [cuts.get(i, [None] * len(quota.kept)) for i, quota in enumerate(quotas)]
    settled = [
        [_group_cut(quota, name, cut) for name, cut in zip(quota.kept, found_or_none, strict=True)]
        for quota, found_or_none in zip(quotas, found_cuts, strict=True)
    ]
    for (i, group), boundary_id in _boundary_ids(passes, parts, candidates, settled).items():
        settled[i][group] = replace(settled[i][group], boundary_id=boundary_id)
    return [tuple(of_set) for of_set in settled]


def _searches(quotas: Quotas, sample: FloatArray) -> list[Search | None]:
    guess = sample if len(quotas.kept) == 1 else np.zeros(0)
    return [
        Search(k, quotas.available[name], guess) if k and not quotas.whole and quotas.found is None else None
        for name, k in quotas.kept.items()
    ]


def _group_cut(quotas: Quotas, name: str | None, cut: Cut | None) -> GroupCut:
    """The cut of one group, its boundary id still to be found."""
    k, available = quotas.kept[name], quotas.available[name]
    cut = quotas.found if quotas.found is not None else cut
    if cut is None:
        return GroupCut(threshold=-np.inf if quotas.whole else np.inf, k=k, num_candidates=available)
    return GroupCut(
        threshold=cut.threshold,
        k=k,
        num_tied=cut.num_tied,
        num_tied_kept=k - cut.num_above,
        num_candidates=available,
    )


def _boundary_ids(
    passes: Passes, parts: Sequence[Part], candidates: Sequence[Candidates], cuts: Sequence[Sequence[GroupCut]]
) -> dict[tuple[int, int], str]:
    """The largest id kept of each cut that divides a tie, by set and group; all searches share their passes."""
    open_searches: dict[tuple[int, int], tuple[IdSearch, IdQuestion]] = {}
    for i, of_set in enumerate(cuts):
        for group, cut in enumerate(of_set):
            if cut.num_tied_kept < cut.num_tied:
                search = mth_smallest_id(cut.num_tied_kept, cut.num_tied)
                open_searches[i, group] = (search, next(search))
    found: dict[tuple[int, int], str] = {}
    while open_searches:
        tied = [
            Tied(candidates=candidates[i], group=group, score=cuts[i][group].threshold, question=question)
            for (i, group), (_, question) in open_searches.items()
        ]
        answers = list(zip(*passes.run(TiedTask(tied=tied), parts), strict=True))
        for (place, (search, _)), of_parts in zip(list(open_searches.items()), answers, strict=True):
            try:
                open_searches[place] = (search, search.send(of_parts))
            except StopIteration as end:
                found[place] = end.value
                del open_searches[place]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Tied:
    """A question about the ids of the candidates of a group that have exactly this score."""

    candidates: Candidates
    group: int
    score: float
    question: IdQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class TiedTask:
    """Asks questions about ids of one part; picklable."""

    tied: Sequence[Tied]

    def __call__(self, part: Part) -> list[Any]:
        """The answers."""
        answers = [each.question.empty() for each in self.tied]
        for block in part.blocks((schema.ID, *(name for each in self.tied for name in each.candidates.columns))):
            cache = TermCache(block.rows)
            ids = single_array(block.rows, schema.ID)
            for candidates, places in self._by_candidates():
                scores, mask = candidates.scores(block, cache)
                groups = candidates.rows_by_group(block, mask)
                for place in places:
                    rows = groups[self.tied[place].group]
                    rows = rows[scores[rows] == self.tied[place].score]
                    if rows.size:
                        question = self.tied[place].question
                        answers[place] = question.add(answers[place], ids.take(pa.array(rows)))
        return answers

    def _by_candidates(self) -> list[tuple[Candidates, list[int]]]:
        """Places in `tied` by the candidates they are about, whose scores are then computed once."""
        places: dict[int, list[int]] = {}
        for place, each in enumerate(self.tied):
            places.setdefault(id(each.candidates), []).append(place)
        return [(self.tied[of_one[0]].candidates, of_one) for of_one in places.values()]
