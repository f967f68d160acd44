"""What people hold, as Arrow tables and back: data frames, datasets, lists of dicts.

A library is imported only where its own object comes in or is asked for.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl

KINDS = "a path or URL, a datasets.Dataset, a pandas or polars data frame, an Arrow table, or a list of dicts"


def to_table(data: Any) -> pa.Table:
    """The rows as an Arrow table.

    Raises:
        ConfigError: nothing that rows can be taken from, or rows of different shapes.
    """
    library = type(data).__module__.partition(".")[0]
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if library == "datasets" and hasattr(data, "with_format"):
        return data.with_format("arrow")[:]
    if library == "pandas" and hasattr(data, "columns"):
        return _converted(lambda: pa.Table.from_pandas(data, preserve_index=False))
    if library == "polars" and hasattr(data, "to_arrow"):
        return data.to_arrow()
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        rows = list(data)
        if all(isinstance(row, Mapping) for row in rows):
            return _converted(lambda: pa.Table.from_pylist([dict(row) for row in rows]))
    raise ConfigError(f"rows cannot be taken from {type(data).__module__}.{type(data).__qualname__}; wanted {KINDS}.")


def _converted(convert: Any) -> pa.Table:
    try:
        return convert()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        # Arrow's own message may quote a row.
        raise ConfigError(
            f"the rows do not fit one table ({type(error).__name__}): a column holds values of several types. Give "
            "each column one type."
        ) from None


def to_datasets(table: pa.Table) -> "datasets.Dataset":
    """The table as a Hugging Face dataset, without a copy of the texts."""
    import datasets

    return datasets.Dataset(datasets.table.InMemoryTable(table))


def to_pandas(table: pa.Table) -> "pd.DataFrame":
    """The table as a pandas data frame; lists of messages become lists of dicts."""
    frame = table.to_pandas()
    for field in table.schema:
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
            frame[field.name] = table.column(field.name).to_pylist()
    return frame


def to_polars(table: pa.Table) -> "pl.DataFrame":
    """The table as a polars data frame."""
    import polars

    frame = polars.from_arrow(table)
    assert isinstance(frame, polars.DataFrame)  # noqa: S101 - of a table it is one
    return frame
