"""A table of Apache Iceberg, in a catalog that pyiceberg knows.

The Parquet files of a subset stay where they lie, if the catalog's client can read them there; else they are copied to
the table. The digest stands in the snapshot and, as snapshots expire, in the properties of the table. One commit holds
both, and creates the table if there is none.

pyiceberg repeats a commit that somebody overtook, and would add the rows a second time; that is turned off.
"""

import functools
import shutil
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationException,
)
from pyiceberg.expressions import AlwaysTrue, And, EqualTo
from pyiceberg.io.pyarrow import parquet_files_to_data_files, schema_to_pyarrow
from pyiceberg.partitioning import partition_record_value
from pyiceberg.table import Table as PyIcebergTable
from pyiceberg.transforms import IdentityTransform

from pipeline import config
from pipeline.config.table import Mode
from pipeline.data.place import Place
from pipeline.data.table_libraries import load_catalog, location_of
from pipeline.errors import StorageError
from pipeline.exports.tables.rows import Piece, Rows
from pipeline.exports.tables.table import FINGERPRINT, MODE, PUBLISHED, Overtaken
from pipeline.shown import listed, shown, shown_path
from pipeline.sources.columns import plain_type

_OVERTAKEN = (CommitFailedException, CommitStateUnknownException, TableAlreadyExistsError, ValidationException)


def open_table(target: config.Table, storage: config.Storage) -> "IcebergTable":
    """The table as it is now.

    Raises:
        ConfigError: the catalog is not described.
        StorageError: its namespace is not there.
    """
    catalog_name, _, name = target.path.partition("/")
    catalog = load_catalog(catalog_name, storage)
    try:
        return IcebergTable(catalog, name, catalog.load_table(name), storage)
    except NoSuchTableError:
        namespace = name.rpartition(".")[0]
        if not catalog.namespace_exists(namespace):
            raise StorageError(
                f"{shown_path(target.url)}: the catalog has no namespace {shown(namespace)}. Create it, such as by "
                f"`pyiceberg --catalog {shown(catalog_name)} create namespace {shown(namespace)}`."
            ) from None
        return IcebergTable(catalog, name, None, storage)


class IcebergTable:
    """A `table.Table`."""

    def __init__(self, catalog: Catalog, name: str, table: PyIcebergTable | None, storage: config.Storage) -> None:
        self._catalog, self._name, self._table, self._storage = catalog, name, table, storage
        self._parts = [] if table is None or table.spec().is_unpartitioned() else [*table.spec().fields]
        unfit = [
            f"{part.name} ({part.transform})"
            for part, column in zip(self._parts, self.partitioned_by, strict=True)
            if "." in column or not isinstance(part.transform, IdentityTransform)
        ]
        if unfit:
            raise StorageError(
                f"{name} is partitioned by {listed(unfit)}. Supported are partitions by the values of columns as they "
                "are (identity). Give another table."
            )

    @property
    def columns(self) -> pa.Schema | None:
        """Its columns; None if there is no table."""
        return None if self._table is None else schema_to_pyarrow(self._table.schema(), include_field_ids=False)

    @property
    def partitioned_by(self) -> tuple[str, ...]:
        """The source columns of its partitions."""
        if self._table is None:
            return ()
        return tuple(str(self._table.schema().find_column_name(part.source_id)) for part in self._parts)

    def holds(self, rows: Rows, mode: Mode) -> bool:
        """Whether a property says so or, to replace, the newest snapshot, or the files of the partition."""
        if self._table is None:
            return False
        if mode == "append":
            return PUBLISHED + rows.mark in self._table.properties
        if rows.partition:
            there = self._there(self._table, rows).values()
            num_deletes = sum(len(task.delete_files) for task in there)
            files = ((task.file.file_path, task.file.record_count) for task in there)
            return not num_deletes and rows.are_all(files)
        newest = self._table.current_snapshot()
        about = {} if newest is None or newest.summary is None else newest.summary.additional_properties
        return (about.get(FINGERPRINT), about.get(MODE)) == (rows.mark, mode)

    def commit(self, rows: Rows, mode: Mode) -> str:
        """Register the files in one commit; the id of the snapshot."""
        try:
            return self._committed(rows, mode)
        except _OVERTAKEN:
            raise Overtaken from None

    def _committed(self, rows: Rows, mode: Mode) -> str:
        about = {FINGERPRINT: rows.mark, MODE: mode}
        if self._table is None:
            plain = pa.schema([pa.field(field.name, plain_type(field.type)) for field in rows.schema])
            change: Any = self._catalog.create_table_transaction(self._name, plain)
        else:
            self._table.metadata.properties["commit.retry.num-retries"] = "0"  # of this object, never stored
            change = self._table.transaction()
        urls = self._urls(rows, change.table_metadata.location, change._table.io)  # noqa: SLF001
        with change:
            if self._table is not None and (mode == "replace" or rows.partition):
                self._exchange(change, self._table, rows, urls, about)
            else:
                change.add_files(urls, snapshot_properties=about)
            change.set_properties({PUBLISHED + rows.mark: f"{mode} {rows.partition_key}".rstrip()})
            snapshot = change.table_metadata.current_snapshot_id
        if self._table is None and self._catalog.load_table(self._name).snapshot_by_id(snapshot) is None:
            raise Overtaken  # some catalogs let two create a table at once, one over the other
        return str(snapshot)

    def _there(self, table: PyIcebergTable, rows: Rows) -> dict[str, Any]:
        """What is to be read of the partition of these rows, or of the table, by file."""
        is_own = [EqualTo(name, value.as_py()) for name, value in rows.partition.items()]
        scan = table.scan(row_filter=functools.reduce(And, is_own, AlwaysTrue()))
        found = {task.file.file_path: task for task in scan.plan_files()}
        if rows.partition and any(task.file.spec_id != table.spec().spec_id for task in found.values()):
            raise StorageError(
                f"{self._name} has files of before it was partitioned so, with rows of this partition perhaps. Rewrite "
                "them, as rewrite_data_files of Spark does."
            )
        return found

    def _exchange(
        self, change: Any, table: PyIcebergTable, rows: Rows, urls: Sequence[str], about: dict[str, str]
    ) -> None:
        """Add the files, as one snapshot and, to replace, take out what is there."""
        there, replaces = self._there(table, rows), about[MODE] == "replace"
        if any(there[url].delete_files for url in urls if url in there):
            raise StorageError(f"{self._name} deletes rows of the files of the subset. Give another table.")
        if table.metadata.name_mapping() is None:
            change.set_properties({"schema.name-mapping.default": table.schema().name_mapping.model_dump_json()})
        marks = {key: text for key, text in table.properties.items() if replaces and key.startswith(PUBLISHED)}
        same = [key for key, text in marks.items() if text.partition(" ")[2] == rows.partition_key]
        change.remove_properties(*same)
        new = [url for url in urls if url not in there]
        update = change.update_snapshot(snapshot_properties=about)
        with update.overwrite() if replaces else update.fast_append() as files:
            for url in there.keys() - {*urls} if replaces else ():
                files.delete_data_file(there[url].file)
            for file in parquet_files_to_data_files(table.io, change.table_metadata, iter(new)):
                files.append_data_file(self._in_partition(file, table, rows))

    def _in_partition(self, file: Any, table: PyIcebergTable, rows: Rows) -> Any:
        """Set the partition, which is null where the table keeps no statistics of its column."""
        for place, (part, name) in enumerate(zip(self._parts, self.partitioned_by, strict=True)):
            file.partition[place] = partition_record_value(part, rows.partition[name].as_py(), table.schema())
        return file

    def _urls(self, rows: Rows, location: str, io: Any) -> list[str]:
        """The files by URLs that the catalog's client can read; copied to the table if it cannot."""
        local = "://" not in location or location.startswith("file://")
        if rows.lie_in_subset and _reaches(io, rows.pieces[0], local=local):
            return [_url(piece.place) for piece in rows.pieces]
        if local:
            folder = Place.open(location, self._storage) / "data"
            for piece in rows.pieces:
                rows.copy(piece, folder / piece.name)
            return [_url(folder / piece.name) for piece in rows.pieces]
        return [_copied(rows, piece, f"{location}/data/{piece.name}", io) for piece in rows.pieces]


def _reaches(io: Any, piece: Piece, *, local: bool) -> bool:
    if piece.place.is_local and not local:
        return False
    try:
        return len(io.new_input(_url(piece.place))) == piece.file.size
    except Exception:  # noqa: BLE001 - a copy does not need what fails here
        return False


def _copied(rows: Rows, piece: Piece, url: str, io: Any) -> str:
    output = io.new_output(url)
    if not output.exists() or len(output) != piece.file.size:
        with rows.local(piece) as path, path.open("rb") as source, output.create(overwrite=True) as target:
            shutil.copyfileobj(source, target, 2**20)
    return url


def _url(place: Place) -> str:
    return f"file://{place.root}" if place.is_local else location_of(place)
