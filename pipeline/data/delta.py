"""A version of a Delta table: `delta://PATH[@VERSION]`."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline import config
from pipeline.data.place import Place
from pipeline.data.snapshots import DataFile, ParquetFiles, named
from pipeline.data.table_libraries import library_errors, location_of, store_options
from pipeline.errors import ConfigError, StorageError
from pipeline.shown import shown_path


def open_snapshot(name: str, storage: config.Storage) -> ParquetFiles:
    """The files of the version that is named, else of the newest. Raises as `open_table`."""
    where = shown_path(f"delta://{name}")
    match = re.fullmatch(r"(.+?)(?:@(\d+))?", name.rstrip("/"), re.DOTALL)
    if match is None:
        raise ConfigError(f"{where}: wanted delta://PATH[@VERSION].")
    place = Place.open(match[1], storage)
    try:
        (place / "_delta_log").check_readable()
    except StorageError as error:
        raise StorageError(f"{where} is no Delta table that can be read. {error}") from None
    with library_errors(where):
        table = _opened(place, match[2], storage, where)
        _check_plain(table, where)
        files = [*_files(table, place)]
    version = str(table.version())
    root = f"{location_of(place)}@{version}"
    return ParquetFiles(place.fs, files=named(files), protocol="delta", root=root, snapshot=version, storage=storage)


def _opened(place: Place, version: str | None, storage: config.Storage, where: str) -> Any:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    options = store_options(place, storage)
    try:
        return DeltaTable(location_of(place), None if version is None else int(version), storage_options=options)
    except DeltaError:
        if version is None:
            raise
    newest = DeltaTable(location_of(place), storage_options=options).version()
    raise StorageError(
        f"{where}: version {version} cannot be read. The newest is {newest}; the logs of old ones may be gone."
    )


def _files(table: Any, place: Place) -> Iterator[DataFile]:
    actions = pa.table(table.get_add_actions())
    partitions: list[Mapping[str, str | None]] = [{}] * actions.num_rows
    if "partition" in actions.column_names:
        values = actions.column("partition").combine_chunks().flatten()
        names = [field.name for field in actions.schema.field("partition").type]
        texts = pa.table([array.cast(pa.string()) for array in values], names=names)
        partitions = texts.to_pylist()
    paths, sizes = (actions.column(name).to_pylist() for name in ("path", "size_bytes"))
    for path, size, partition in zip(paths, sizes, partitions, strict=True):
        # Absolute paths are those of a shallow clone, whose files belong to another table.
        path = str(place.fs._strip_protocol(unquote(path)) if "://" in path else f"{place.root}/{unquote(path)}")  # noqa: PLW2901, SLF001
        yield DataFile(path, size, partition)


def _check_plain(table: Any, where: str) -> None:
    """Raise a StorageError if the files hold other rows or columns than the table."""
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise StorageError(
            f"{where}: its columns have other names in its files (delta.columnMapping.mode), which is not supported. "
            "Write the rows to a table without it: spark.table(NAME).write.format('delta').save(PATH)."
        )
    has_vectors = "deletionVectors" in (table.protocol().reader_features or ())
    if has_vectors and any(batch.num_rows for batch in pa.RecordBatchReader.from_stream(table.deletion_vectors())):
        raise StorageError(
            f"{where}: some rows of its files are deleted (deletion vectors), which is not supported. Remove them from "
            "the files: `REORG TABLE NAME APPLY (PURGE)` in Spark. Then read the new version."
        )
