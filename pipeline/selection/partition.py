"""The folders that the Parquet files of a subset lie in: output.partition_by, named as Hive does."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.columns import single_array
from pipeline.schema import TRAIN
from pipeline.selection.columns import coded
from pipeline.selection.selection import Selection
from pipeline.selection.source import Positions, Source, take_all
from pipeline.shown import shown
from pipeline.sources.shards import NULL_PARTITION

KEY: Final = "output.partition_by"
_LONGEST: Final = 250  # bytes of the name of a folder

Partition = Mapping[tuple[str, str], Positions]
"""Ascending places of kept rows by folder and split, in the order of the files."""


def partition(selection: Selection, source: Source, column: str) -> Partition:
    """The folder of each kept row: COLUMN=VALUE, with percent signs before what URLs escape.

    Raises:
        DataError: the column has too many values, too long ones, or cannot name groups.
    """
    values = single_array(take_all(source, selection.positions, [column]), column)
    codes, names = coded(values, column, KEY)
    splits = selection.splits or {TRAIN: np.arange(selection.k)}
    found = {}
    for code, name in enumerate([*names, None]):
        folder = f"{quote(column, safe='')}={NULL_PARTITION if name is None else quote(name, safe='')}"
        if len(folder) > _LONGEST:
            raise DataError(
                f"{KEY} {shown(column)} has values of more than {_LONGEST} bytes. Take one of short values."
            )
        is_own = codes == (-1 if name is None else code)
        for split, rows in splits.items():
            own = rows[is_own[rows]]
            if own.size:
                found[folder, split] = own
    return dict(sorted(found.items()))
