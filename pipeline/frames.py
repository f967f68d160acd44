"""Rows as people hold them: data frames, datasets, lists of dicts; as Arrow tables and back.

A library is imported only if its own object is asked for.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl


def to_table(data: Any) -> pa.Table:
    """The rows as an Arrow table.

    Raises:
        ConfigError: this kind of object holds no rows, or the rows are of different shapes.
    """
    library = type(data).__module__.partition(".")[0]
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if library == "datasets" and hasattr(data, "with_format"):
        return data.with_format("arrow")[:]
    if library == "polars" and hasattr(data, "to_arrow"):
        return data.to_arrow()
    try:
        if library == "pandas" and hasattr(data, "columns"):
            return pa.Table.from_pandas(data, preserve_index=False)
        if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
            rows = list(data)
            if all(isinstance(row, Mapping) for row in rows):
                return pa.Table.from_pylist([dict(row) for row in rows])
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        # Arrow's own message may quote a row.
        raise ConfigError(
            f"the rows do not fit one table ({type(error).__name__}): a column holds values of several types. Give "
            "each column one type."
        ) from None
    raise ConfigError(
        f"rows cannot be taken from {type(data).__module__}.{type(data).__qualname__}; wanted a path or URL, a "
        "datasets.Dataset, a pandas or polars data frame, an Arrow table, or a list of dicts."
    )


class Rows:
    """Rows in the order of their source, for other libraries to take over."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self.to_arrow().num_rows)

    def to_arrow(self) -> pa.Table:
        """As an Arrow table."""
        return self._table

    def to_datasets(self) -> "datasets.Dataset":
        """As a Hugging Face dataset, without a copy of the texts."""
        import datasets

        return datasets.Dataset(datasets.table.InMemoryTable(self.to_arrow()))

    def to_pandas(self) -> "pd.DataFrame":
        """As a pandas data frame; lists of messages become lists of dicts."""
        table = self.to_arrow()
        frame = table.to_pandas()
        for field in table.schema:
            if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
                frame[field.name] = table.column(field.name).to_pylist()
        return frame

    def to_polars(self) -> "pl.DataFrame":
        """As a polars data frame."""
        import polars

        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)  # noqa: S101 - of a table it is one
        return frame
