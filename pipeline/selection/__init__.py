"""Which pairs to keep: exact, streamed, in constant memory, the same for any order and partition of the rows.

    source      the protocol that selection reads through, and blocks of it
    survey      first pass: rows by outcome, moments, a sample
    threshold   the k-th largest score
    ties        the m-th smallest id among rows of equal score
    top_k       `select`, which puts these together
    selection   the resulting rule and its numbers, applied table by table
    report      what was kept, in numbers

Knows no storage, no models and no Ray.
"""

from pipeline.selection.report import render, summarise
from pipeline.selection.selection import Selection
from pipeline.selection.source import ScoreSource, TableSource
from pipeline.selection.top_k import num_selected, select

__all__ = ["ScoreSource", "Selection", "TableSource", "num_selected", "render", "select", "summarise"]
