"""Rules that leave out rows because of better ones: too many of a prompt, or a text that repeats.

Both leave out positions, which later passes skip: 8 bytes a row left out. The limit per prompt takes one pass over the
prompts. Repeated texts take a pass over the texts of the selected rows, and a few more each time that the next best
rows move up; texts are held in memory while they are compared. A row that moves up in its group is compared with all
rows selected before it, those of lower score in other groups too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray, single_array
from pipeline.metrics.terms import TermCache
from pipeline.selection.cuts import Quotas, find_group_cuts
from pipeline.selection.near_duplicates import Kind, NearDuplicates, row_texts
from pipeline.selection.passes import Passes
from pipeline.selection.per_prompt import PromptRows, beyond_cap, prompt_keys
from pipeline.selection.selection import Selection
from pipeline.selection.source import Part, Positions
from pipeline.selection.streams import Candidates
from pipeline.shown import shown

BEYOND_PROMPT_CAP: Final = "beyond_per_prompt"
SIMILAR: Final = "text_of_a_better_row"
_TEXT_ROWS: Final = 2**12
_TEXTS: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTask:
    """The candidates of one part with digests of their prompts; picklable."""

    candidates: Candidates

    def __call__(self, part: Part) -> list[PromptRows]:
        """The rows."""
        found = []
        for block in part.blocks((schema.ID, schema.PROMPT, *self.candidates.columns), _TEXT_ROWS):
            scores, mask = self.candidates.scores(block, TermCache(block.rows))
            keep = np.ones(scores.shape, dtype=np.bool_) if mask is None else mask
            rows = block.rows.filter(pa.array(keep))
            keys = prompt_keys(single_array(rows, schema.PROMPT))
            ids, positions = single_array(rows, schema.ID), block.positions[keep]
            found.append(PromptRows(keys=keys, scores=scores[keep], ids=ids, positions=positions))
        return found


def beyond_prompt_caps(
    passes: Passes, parts: Sequence[Part], candidates: Sequence[Candidates], caps: Sequence[int | None], num_rows: int
) -> list[Candidates]:
    """The candidates without rows that are not among the best `caps` of their prompt; num_rows: about how many."""
    capped = []
    for each, cap in zip(candidates, caps, strict=True):
        if cap is None:
            capped.append(each)
            continue
        results = passes.run(PromptTask(candidates=replace(each, group_by=None)), parts)
        left_out = beyond_cap((rows for of_part in results for rows in of_part), cap, num_rows)
        capped.append(replace(each, left_out=left_out))
    return capped


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextRows:
    """Rows with the texts to compare."""

    scores: FloatArray
    ids: list[str]
    positions: Positions
    texts: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTask:
    """The rows of one part that `selection` keeps and `before` did not; picklable."""

    selection: Selection
    before: Selection | None

    def __call__(self, part: Part) -> list[TextRows]:
        """The rows."""
        found = []
        for block in part.blocks((schema.ID, *self.selection.columns, *_TEXTS), _TEXT_ROWS):
            cache = TermCache(block.rows)
            keep = self.selection.mask_of(block, cache)
            if self.before is not None:
                keep &= ~self.before.mask_of(block, cache)
            if keep.any():
                rows = block.rows.filter(pa.array(keep))
                scores, _ = self.selection.candidates.scores(block, cache)
                found.append(TextRows(
                    scores=scores[keep],
                    ids=single_array(rows, schema.ID).to_pylist(),
                    positions=block.positions[keep],
                    texts=row_texts(rows),
                ))  # fmt: skip
        return found


def without_similar(passes: Passes, parts: Sequence[Part], selection: Selection, quotas: Quotas) -> Selection:
    """The selection with rows whose text repeats that of a better one replaced by the next best rows.

    With a fraction, fewer rows are kept where the others run out.

    Raises:
        DataError: with a number to keep, too few rows are left.
    """
    rule = selection.select
    if rule.deduplicate == "none":
        return selection
    kind: Kind = rule.deduplicate
    index = NearDuplicates(kind, rule.similarity)
    before: Selection | None = None
    num_out = 0
    while True:
        refused = _refused(index, passes.run(TextTask(selection=selection, before=before), parts))
        num_out += refused.size
        if not refused.size:
            return replace(selection, excluded={**selection.excluded, SIMILAR: num_out})
        before = selection
        left_out = np.union1d(selection.left_out, refused)
        quotas = _fewer(quotas, _by_group(selection, parts, refused, passes), rule.k)
        candidates = replace(selection.candidates, left_out=left_out)
        cuts = find_group_cuts(passes, parts, [candidates], [quotas], [np.zeros(0)])[0]
        selection = replace(selection, cuts=cuts, left_out=left_out)


def _refused(index: NearDuplicates, results: Iterator[list[TextRows]]) -> Positions:
    """Positions of the rows that repeat a better one, ascending; rows are judged best first, ties by id."""
    rows = [(-score, id_, position, text) for of_part in results for each in of_part
            for score, id_, position, text in zip(
                each.scores.tolist(), each.ids, each.positions.tolist(), each.texts, strict=True)]  # fmt: skip
    rows.sort(key=lambda row: row[:2])
    kept = index.admit([text for _, _, _, text in rows])
    return np.sort(np.array([row[2] for row, keep in zip(rows, kept, strict=True) if not keep], dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupTask:
    """How many of some positions lie in each group."""

    candidates: Candidates
    positions: Positions

    def __call__(self, part: Part) -> list[int]:
        counts = [0] * self.candidates.num_groups
        for block in part.blocks(self.candidates.columns):
            hits = np.isin(block.positions, self.positions)
            if hits.any():
                for i, rows in enumerate(self.candidates.rows_by_group(block, hits)):
                    counts[i] += rows.size
        return counts


def _by_group(selection: Selection, parts: Sequence[Part], positions: Positions, passes: Passes) -> list[int]:
    if not selection.groups:
        return [positions.size]
    task = _GroupTask(candidates=selection.candidates, positions=positions)
    return [sum(counts) for counts in zip(*passes.run(task, parts), strict=True)]


def _fewer(quotas: Quotas, num_refused: Sequence[int], k: int | None) -> Quotas:
    """The quotas when so many rows of each group are no longer there."""
    available = {**quotas.available}
    kept = {}
    for (name, wanted), refused in zip(quotas.kept.items(), num_refused, strict=True):
        available[name] -= refused
        kept[name] = available[name] if quotas.whole else min(wanted, available[name])
        if k is not None and kept[name] < wanted:
            group = "" if name is None else f" of group {shown(name)}"
            raise DataError(
                f"{wanted} rows{group} are wanted, but without repeated texts only {available[name]} are left. Lower "
                "select.k, raise select.similarity, or give a fraction, which keeps what there is."
            )
    return Quotas(kept=kept, available=type(quotas.available)(available), whole=quotas.whole)
