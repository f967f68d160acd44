"""A table of Delta Lake.

Files are copied below the table, under names that the same rows always get, so that a publisher which was killed finds
them again. The digest is the application of a transaction in the log, and the version of the transaction is that of the
table. Delta keeps it, and refuses a commit if the same application has committed since the table was opened.
"""

import json
import re
import time
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from pipeline import config
from pipeline.config.table import Mode
from pipeline.data.place import Place
from pipeline.data.table_libraries import location_of, store_options
from pipeline.errors import StorageError
from pipeline.exports.tables.rows import Rows
from pipeline.exports.tables.table import FINGERPRINT, MODE, Overtaken
from pipeline.sources.columns import plain_type

_APPLICATION: Final = "alignpot:"
_REPLACED: Final = "alignpot:replaced"
_COMMIT: Final = re.compile(r"\d{20}(\..*)?\.(json|parquet)")


def open_table(target: config.Table, storage: config.Storage) -> "DeltaLakeTable":
    """The table as it is now."""
    place = Place.open(target.path, storage)
    options = store_options(place, storage)
    try:
        table = DeltaTable(location_of(place), storage_options=options)
    except TableNotFoundError:
        # Of a store that fails, Delta says the same; it is raised here.
        if not any(_COMMIT.fullmatch(name) for name in (place / "_delta_log").sizes()):
            return DeltaLakeTable(place, None, options)
        table = DeltaTable(location_of(place), storage_options=options)  # somebody has just created it
    return DeltaLakeTable(place, table, options)


class DeltaLakeTable:
    """A `table.Table`."""

    def __init__(self, place: Place, table: DeltaTable | None, options: dict[str, str] | None) -> None:
        self._place, self._table, self._options = place, table, options
        self._partitioned_by: tuple[str, ...] = ()
        if table is None:
            return
        about = table.metadata()
        mapped = about.configuration.get("delta.columnMapping.mode", "none") != "none"
        checked = any(key.startswith("delta.constraints.") for key in about.configuration)
        self._partitioned_by = tuple(about.partition_columns)
        checked |= not all(field.nullable or field.name in self._partitioned_by for field in table.schema().fields)
        if mapped or checked:
            raise StorageError(
                f"{place} has column mapping, constraints or columns that must not be null, which are not supported. "
                "Give another table."
            )

    @property
    def columns(self) -> pa.Schema | None:
        """Its columns; None if there is no table."""
        return None if self._table is None else pa.schema(self._table.schema().to_arrow())

    @property
    def partitioned_by(self) -> tuple[str, ...]:
        """Its partition columns."""
        return self._partitioned_by

    def holds(self, rows: Rows, mode: Mode) -> bool:
        """Whether the transactions in the log say so or, to replace a partition, its files."""
        if self._table is None:
            return False
        if rows.partition and mode == "replace":
            return rows.are_all(self._files_of(rows))
        published = self._table.transaction_version(_APPLICATION + rows.mark)
        replaced = self._table.transaction_version(_REPLACED + rows.partition_key)
        if published is None:
            return False
        if mode == "replace":
            return bool(published == replaced == self._table.version())
        return bool(replaced is None or published >= replaced)

    def commit(self, rows: Rows, mode: Mode) -> str:
        """Copy the files, then commit them; the version of the table."""
        version = 0 if self._table is None else self._table.version() + 1
        applications = [_APPLICATION + rows.mark, *([_REPLACED + rows.partition_key] if mode == "replace" else [])]
        properties = CommitProperties(
            app_transactions=[Transaction(name, version) for name in applications],
            custom_metadata={FINGERPRINT: rows.mark, MODE: mode},
            max_commit_retries=0,
        )
        files = self._files(rows)
        schema: Any = Schema.from_arrow(
            pa.schema([pa.field(field.name, plain_type(field.type)) for field in rows.schema])
        )
        try:
            if self._table is not None:
                write = "append" if mode == "append" else "overwrite"
                actions: list[AddAction | RemoveAction] = [*files]
                self._table.create_write_transaction(
                    actions,
                    write,
                    self._table.schema(),
                    [*self._partitioned_by],
                    [(name, "=", text) for name, text in rows.partition_texts.items()] or None,
                    commit_properties=properties,
                )
            else:
                create_table_with_add_actions(
                    location_of(self._place),
                    schema,
                    files,
                    storage_options=self._options,
                    commit_properties=properties,
                )
        except CommitFailedError:
            raise Overtaken from None
        except DeltaError as error:
            if self._table is None and "already exists" in str(error):
                raise Overtaken from None
            raise
        return str(version)

    def _files_of(self, rows: Rows) -> Iterator[tuple[str, int]]:
        """The files of the partition of these rows, by path and number of rows."""
        own = {name: value.as_py() for name, value in rows.partition.items()}
        actions = pa.table(self._table.get_add_actions()) if self._table is not None else pa.table({})
        known = [name for name in ("path", "num_records", "partition") if name in actions.column_names]
        for action in actions.select(known).to_pylist():
            if action.get("partition") == own:
                yield action["path"], action.get("num_records") or 0

    def _files(self, rows: Rows) -> list[AddAction]:
        taken = [] if self._table is None else self._table.file_uris()
        taken_names = {uri.rpartition("/")[2] for uri in taken}
        files = []
        for piece in rows.pieces:
            # One commit must not take out a file and add it.
            name = piece.name if piece.name not in taken_names else f"{len(taken)}-{piece.name}"
            rows.copy(piece, self._place / name)
            files.append(
                AddAction(
                    path=name,
                    size=piece.file.size,
                    partition_values=rows.partition_texts,
                    modification_time=int(time.time() * 1000),
                    data_change=True,
                    stats=json.dumps({"numRecords": piece.file.num_rows}),
                )
            )
        return files
