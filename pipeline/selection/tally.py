"""What a selection keeps of each part: rows by group, and a digest of their ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.errors import IntegrityError
from pipeline.metrics.columns import BoolArray, single_array
from pipeline.metrics.ids import digest_sum
from pipeline.metrics.terms import TermCache
from pipeline.selection.passes import Passes, Threads
from pipeline.selection.selection import Selection
from pipeline.selection.source import Block, Part, ScoreSource, parts_of
from pipeline.shown import quoted


@dataclass(slots=True, kw_only=True)
class Tally:
    """Kept rows by group, and the sum of the hashes of their ids."""

    num_kept: npt.NDArray[np.int64]
    digest: int = 0

    def merge(self, other: "Tally") -> None:
        """Take in the tally of other rows."""
        self.num_kept = self.num_kept + other.num_kept
        self.digest += other.digest


def tally_block(tally: Tally, selection: Selection, block: Block, cache: TermCache) -> BoolArray:
    """Take in a block and return which of its rows are kept."""
    keep = selection.mask_of(block, cache)
    if selection.groups:
        groups = selection.candidates.rows_by_group(block, keep)
        tally.num_kept += np.array([rows.size for rows in groups], dtype=np.int64)
    else:
        tally.num_kept += int(np.count_nonzero(keep))
    tally.digest += digest_sum(single_array(block.rows, schema.ID).filter(pa.array(keep)))
    return keep


def empty_tally(selection: Selection) -> Tally:
    """Of no rows."""
    return Tally(num_kept=np.zeros(len(selection.cuts), dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyTask:
    """Tallies one part for several selections; picklable."""

    selections: Sequence[Selection]
    columns: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", (schema.ID, *(name for s in self.selections for name in s.columns)))

    def __call__(self, part: Part) -> list[Tally]:
        """One tally a selection."""
        tallies = [empty_tally(selection) for selection in self.selections]
        for block in part.blocks(self.columns):
            cache = TermCache(block.rows)
            for tally, selection in zip(tallies, self.selections, strict=True):
                tally_block(tally, selection, block, cache)
        return tallies


def verified(passes: Passes, parts: Sequence[Part], selections: Sequence[Selection]) -> list[Selection]:
    """The selections with their digests, after counting that each keeps what it says.

    Raises:
        IntegrityError: one does not.
    """
    totals = [empty_tally(selection) for selection in selections]
    for of_part in passes.run(TallyTask(selections=selections), parts):
        for total, tally in zip(totals, of_part, strict=True):
            total.merge(tally)
    return [with_tally(selection, total) for selection, total in zip(selections, totals, strict=True)]


def with_tally(selection: Selection, tally: Tally) -> Selection:
    """The selection with its digest.

    Raises:
        IntegrityError: it keeps other numbers of rows than it says.
    """
    for cut, num_kept in zip(selection.cuts, tally.num_kept.tolist(), strict=True):
        if num_kept != cut.k:
            raise IntegrityError(
                f"the rule keeps {num_kept} rows instead of {cut.k}: the id at the threshold "
                f"({quoted(cut.boundary_id)}) repeats, or the source changed meanwhile. Remove duplicates and try "
                "again."
            )
    return replace(selection, id_digest=f"{tally.digest % 2**64:016x}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskTask:
    """Which rows of one part are kept; picklable."""

    selection: Selection

    def __call__(self, part: Part) -> BoolArray:
        """A mask over all rows of the part."""
        masks = [np.zeros(0, dtype=np.bool_)]
        for block in part.blocks(self.selection.columns):
            keep = self.selection.mask_of(block, TermCache(block.rows))
            if block.kept is not None:
                every = np.zeros(block.kept.shape, dtype=np.bool_)
                every[block.kept] = keep
                keep = every
            masks.append(keep)
        return np.concatenate(masks)


def kept_mask(source: ScoreSource, selection: Selection, passes: Passes | None = None) -> BoolArray:
    """Which of all rows of the source are kept, bool [num_rows]: a byte a row, so for what fits memory."""
    passes = passes if passes is not None else Threads()
    parts = parts_of(source, selection.duplicates, selection.select.labels, passes.num_parts)
    return np.concatenate(list(passes.run(MaskTask(selection=selection), parts)))
