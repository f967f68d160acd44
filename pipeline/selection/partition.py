"""The folders that the Parquet files of a subset lie in: output.partition_by, named as Hive does."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.metrics.columns import single_array
from pipeline.schema import TRAIN, require_columns
from pipeline.selection.columns import check_group_type, coded
from pipeline.selection.selection import Selection
from pipeline.selection.source import Positions, Source, take_all
from pipeline.shown import shown
from pipeline.sources.shards import NULL_PARTITION

KEY: Final = "output.partition_by"
_LONGEST: Final = 250  # bytes of the name of a folder

Partition = Mapping[tuple[str, str], Positions]
"""Places of kept rows, in the order of writing, by folder and split, in the order of the files."""


def check_partition(column: str, schema: pa.Schema) -> None:
    """Raise a SchemaError if the column is not there, and a DataError if it cannot name folders."""
    require_columns(schema, [column], where=KEY, remedy="Name it in source.passthrough.")
    check_group_type(column, schema.field(column).type, KEY)


def partition(selection: Selection, source: Source, column: str) -> Partition:
    """The folder of each kept row: COLUMN=VALUE, with percent signs before what URLs escape.

    Raises:
        DataError: the column has too many values or too long ones.
        AlignpotError: as `check_partition`.
    """
    check_partition(column, source.schema)
    values = single_array(take_all(source, selection.positions, [column]), column)
    codes, names = coded(values, column, KEY)
    splits = selection.splits or {TRAIN: np.arange(selection.k) if selection.order is None else selection.order}
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
