"""How many candidates there are, by group."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError
from pipeline.metrics.terms import TermCache
from pipeline.selection.passes import Passes
from pipeline.selection.source import Part
from pipeline.selection.streams import Candidates, group_names
from pipeline.shown import shown

MOST_GROUPS = 1000

GroupCounts = Counter[str | None]
"""Candidates by group; None stands for rows without one, and for all rows where there are no groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTask:
    """Counts the candidates of one part; picklable."""

    candidates: Sequence[Candidates]
    group_by: Sequence[str | None]

    def __call__(self, part: Part) -> list[GroupCounts]:
        """The counts for each set of candidates."""
        counts: list[GroupCounts] = [Counter() for _ in self.candidates]
        columns = [name for candidates in self.candidates for name in candidates.columns]
        for block in part.blocks([*columns, *(name for name in self.group_by if name is not None)]):
            cache = TermCache(block.rows)
            for count, candidates, group_by in zip(counts, self.candidates, self.group_by, strict=True):
                _, mask = candidates.scores(block, cache)
                if group_by is None:
                    count[None] += block.rows.num_rows if mask is None else int(mask.sum())
                    continue
                names = group_names(block.rows, group_by)
                found = pc.value_counts(names if mask is None else names.filter(pa.array(mask)))
                values, numbers = found.field("values").to_pylist(), found.field("counts").to_pylist()
                count.update(dict(zip(values, numbers, strict=True)))
                _check_few(count, group_by)
        return counts


def count_candidates(
    passes: Passes, parts: Sequence[Part], candidates: Sequence[Candidates], group_by: Sequence[str | None]
) -> list[GroupCounts]:
    """Candidates by group of the column `group_by`, for each set of candidates.

    Raises:
        DataError: a column has more than MOST_GROUPS values.
    """
    totals: list[GroupCounts] = [Counter() for _ in candidates]
    for of_part in passes.run(CountTask(candidates=candidates, group_by=group_by), parts):
        for total, count, column in zip(totals, of_part, group_by, strict=True):
            total.update(count)
            if column is not None:
                _check_few(total, column)
    return totals


def _check_few(counts: GroupCounts, column: str) -> None:
    if len(counts) > MOST_GROUPS:
        raise DataError(
            f"select.group_by {shown(column)} has more than {MOST_GROUPS} values; wanted a column that names a few "
            "groups, such as a domain or a source."
        )
