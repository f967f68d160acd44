"""Arrow columns as numpy arrays: the one door from tables into the arithmetic of metrics and selection."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import SchemaError
from pipeline.schema import require_columns

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

_REMEDY = "Read the scored dataset that `alignpot score` wrote, or name the column so in your own."


def single_array(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    """The column as one array, copied only where it lies in several chunks.

    Raises:
        SchemaError: the table has no such column.
    """
    require_columns(table.schema, [name], where="the metric", remedy=_REMEDY)
    column = table.column(name)
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def float_column(table: pa.Table | pa.RecordBatch, name: str) -> FloatArray:
    """A numeric column as float64, shape [num_rows]; nulls become NaN. The array may be read-only.

    Raises:
        SchemaError: no such column, or it is not numeric.
    """
    return floats(single_array(table, name), name)


def floats(array: pa.Array, name: str) -> FloatArray:
    """A numeric Arrow array as float64 with NaN for null; `name` is for the error.

    Raises:
        SchemaError: the array is not numeric.
    """
    kind = array.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"column {name} has type {kind}; wanted a number. Cast it to double before scoring.")
    doubles = array if kind == pa.float64() else array.cast(pa.float64(), safe=False)
    values: FloatArray = doubles.to_numpy(zero_copy_only=False)
    return values
