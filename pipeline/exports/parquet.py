"""The rows of a dataset as Parquet files on local disk, for those who keep files of their own."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.dataset import Dataset
from pipeline.faults import storage_errors

ROWS_PER_FILE: Final = 100_000
_ROWS_PER_GROUP: Final = 10_000
_CHUNKED: Final = {  # a later push then uploads only what differs
    name: True
    for name in ("use_content_defined_chunking",)
    if name in inspect.signature(pq.ParquetWriter.__init__).parameters
}


def write_parquet(
    dataset: Dataset, columns: Sequence[str], folder: Path, constants: Mapping[str, pa.Scalar] | None = None
) -> list[Path]:
    """Write the kept rows to new files in `folder`; no rows make one file without any.

    constants: further columns, each with one value for all rows, which is not null. The bytes depend on the rows alone,
    not on how the dataset was cut.
    """
    num_files = max(1, -(-dataset.num_kept // ROWS_PER_FILE))
    paths = [folder / f"{index:05d}.parquet" for index in range(num_files)]
    added = constants or {}
    empty = _extended(dataset.schema.empty_table().select(columns), added)
    groups = _groups((_extended(table, added) for table in dataset.tables(columns)), empty)
    for path in paths:
        with (
            storage_errors(str(folder)),
            pq.ParquetWriter(path, empty.schema, compression="zstd", **_CHUNKED) as file,
        ):
            for _, group in zip(range(ROWS_PER_FILE // _ROWS_PER_GROUP), groups, strict=False):
                file.write_table(group)
    return paths


def _extended(table: pa.Table, constants: Mapping[str, pa.Scalar]) -> pa.Table:
    for name, value in constants.items():
        field = pa.field(name, value.type, nullable=False)
        table = table.append_column(field, pa.repeat(value, table.num_rows))
    return table


def _groups(tables: Iterable[pa.Table], rest: pa.Table) -> Iterator[pa.Table]:
    for table in tables:
        rest = pa.concat_tables([rest, table.replace_schema_metadata(None)])
        while rest.num_rows >= _ROWS_PER_GROUP:
            yield rest.slice(0, _ROWS_PER_GROUP).combine_chunks()
            rest = rest.slice(_ROWS_PER_GROUP)
    if rest.num_rows:
        yield rest.combine_chunks()
