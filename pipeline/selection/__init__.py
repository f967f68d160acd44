"""Which pairs to keep: exact, ties by id, the same for any order and partition of the rows.

    source      what selection reads through; passes: how a task is run over parts of it
    columns     one pass over narrow columns, held in memory
    fit         what a metric takes from the whole set
    ranking     the score of every row, or why it has none
    disagreement, labels, duplicates    rows that a rule leaves out before statistics
    rules       score bounds, bands, per_prompt, quotas, threshold, near_duplicates: which rows are kept
    selection   `select` and `select_many`, which put these together
    lazy        which rows must still be scored, where some were skipped
    former      the rule of another selection, applied to these rows
    split, partition, order    which of the kept rows are held out, the folder of each, and the order of all
    report      what was kept, in numbers; compare: several metrics side by side
    figures     what the pictures of a page are drawn from: plane, reach, breakdown, data_map, alternatives,
                wrong_labels, members
    judged      how far a pairwise judge is led by place and length

Knows no files, no models and no Ray.
"""

from pipeline.selection.passes import Passes, Threads
from pipeline.selection.ranking import Query
from pipeline.selection.report import render, summarise
from pipeline.selection.selection import Found, Selection, select, select_many
from pipeline.selection.source import Source, TableSource

__all__ = [
    "Found",
    "Passes",
    "Query",
    "Selection",
    "Source",
    "TableSource",
    "Threads",
    "render",
    "select",
    "select_many",
    "summarise",
]
