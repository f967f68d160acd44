"""Which pairs to keep: exact, streamed, in constant memory, the same for any order and partition of the rows.

    source           the protocol that selection reads through, parts and blocks of it
    passes           how a task is run over the parts
    survey, fit      first pass: rows by outcome, and what metrics take from the whole set
    streams          scores and terms of a part
    threshold, ties  the k-th largest number, the m-th smallest id
    counts, quotas   how many rows there are of each group, and how many it gives
    exclusion        rows left out because of better ones: of the same prompt, or of the same text
    cuts, top_k      `select` and `select_many`, which put these together
    selection        the resulting rule and its numbers, applied table by table
    tally, report    what is kept, in numbers

Knows no storage, no models and no Ray.
"""

from pipeline.selection.passes import Passes, Threads
from pipeline.selection.report import render, summarise
from pipeline.selection.selection import Selection
from pipeline.selection.source import ScoreSource, TableSource
from pipeline.selection.tally import kept_mask
from pipeline.selection.top_k import Query, num_selected, select, select_many

__all__ = [
    "Passes",
    "Query",
    "ScoreSource",
    "Selection",
    "TableSource",
    "Threads",
    "kept_mask",
    "num_selected",
    "render",
    "select",
    "select_many",
    "summarise",
]
