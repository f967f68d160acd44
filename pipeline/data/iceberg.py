"""A snapshot of an Iceberg table: `iceberg://CATALOG/NAMESPACE.TABLE[@SNAPSHOT]`, where SNAPSHOT is an id or a ref.

The catalog is the one that pyiceberg knows by that name: from .pyiceberg.yaml or PYICEBERG_CATALOG__NAME__*. Iceberg
knows columns by number and we by name, so files in which these are not the same are refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline import config
from pipeline.data.place import NUM_READERS, Place, open_s3
from pipeline.data.snapshots import DataFile, ParquetFiles, named
from pipeline.data.table_libraries import library_errors, load_catalog
from pipeline.errors import ConfigError, StorageError
from pipeline.shown import listed, shown_path

_KEYS: Final = {"key": "access-key-id", "secret": "secret-access-key", "token": "session-token"}
_REFS_SHOWN: Final = 5


def open_snapshot(name: str, storage: config.Storage) -> ParquetFiles:
    """The files of the snapshot that is named, else of the current one. Raises as `open_table`."""
    where = shown_path(f"iceberg://{name}")
    match = re.fullmatch(r"([^/@]+)/([^/@]+\.[^/@]+)(?:@([^@]+))?", name)
    if match is None:
        raise ConfigError(f"{where}: wanted iceberg://CATALOG/NAMESPACE.TABLE[@SNAPSHOT].")
    catalog, identifier, wanted = match.groups()
    remedy = (
        f"Rewrite the files: `CALL {catalog}.system.rewrite_data_files(table => '{identifier}', options => "
        "map('rewrite-all', 'true'))` in Spark, or `table.overwrite(table.scan().to_arrow())` in PyIceberg. Then read "
        "the new snapshot."
    )
    with library_errors(where):
        table = load_catalog(catalog, storage).load_table(identifier)
        snapshot = _snapshot(table, wanted, where)
        scan = table.scan(snapshot_id=snapshot.snapshot_id)
        tasks = _tasks(scan)
        if tasks is None:
            raise StorageError(
                f"{where}: rows of its files are deleted by delete files, which is not supported. {remedy}"
            )
        files = [_data_file(task.file, table, scan.projection(), where) for task in tasks]
        store = _store([file.path for file in files], table, storage, where)
        files = [file._replace(path=str(store._strip_protocol(file.path))) for file in files]  # noqa: SLF001 - as fsspec
        schema = table.schema() if wanted is None else scan.projection()
        misfits = [*_misfits(files, store, table, schema)]
    if misfits:
        raise StorageError(
            f"{where}: columns were renamed, dropped or given a default after {len(misfits)} of its {len(files)} data "
            f"files were written, such as {shown_path(misfits[0])}. {remedy}"
        )
    number = str(snapshot.snapshot_id)
    root = f"{catalog}/{identifier}@{number}"
    return ParquetFiles(store, files=named(files), protocol="iceberg", root=root, snapshot=number, storage=storage)


def _snapshot(table: Any, wanted: str | None, where: str) -> Any:
    if wanted is None:
        found = table.current_snapshot()
    else:
        by_id = table.snapshot_by_id(int(wanted)) if wanted.isdigit() else None
        found = by_id or table.snapshot_by_name(wanted)
    if found is not None:
        return found
    if wanted is None:
        raise StorageError(f"{where} has no snapshot yet, so no rows. Write to the table first.")
    refs = listed([*table.refs(), *(each.snapshot_id for each in reversed(table.snapshots()))], most=_REFS_SHOWN)
    raise StorageError(f"{where}: no such snapshot or ref. The table has {refs or 'none'}.")


def _tasks(scan: Any) -> list[Any] | None:
    """The data files to read, each in a task; None if rows of them are deleted by other files."""
    try:
        tasks = [*scan.plan_files()]
    except (NotImplementedError, ValueError) as error:  # pyiceberg plans no equality deletes
        if "equality deletes" not in str(error):
            raise
        return None
    return None if any(task.delete_files for task in tasks) else tasks


def _data_file(file: Any, table: Any, schema: Any, where: str) -> DataFile:
    """The file with those values of its partition that are values of columns."""
    from pyiceberg.transforms import IdentityTransform

    if file.file_format.name != "PARQUET":
        raise StorageError(f"{where}: its data files are {file.file_format.name}, and only Parquet is supported.")
    partition: dict[str, str | None] = {}
    for place, field in enumerate(table.specs()[file.spec_id].fields):
        column = schema.find_column_name(field.source_id)
        if column is None or "." in column or not isinstance(field.transform, IdentityTransform):
            continue
        value = file.partition[place]
        kind = schema.find_type(field.source_id)
        partition[column] = None if value is None else field.transform.to_human_string(kind, value)
    return DataFile(file.file_path, file.file_size_in_bytes, partition)


def _store(paths: Sequence[str], table: Any, storage: config.Storage, where: str) -> AbstractFileSystem:
    """The file system of the data files, which may lie in several buckets, but on one store."""
    found = [re.match(r"(?:(\w+)://[^/]+)?", path) for path in paths]
    stores = {(match[1] or "file").replace("s3a", "s3"): match[0] for match in found if match}
    if len(stores) > 1:
        raise StorageError(f"{where}: its files lie on {listed([*stores])}; only one store is supported.")
    scheme, url = next(iter(stores.items()), ("file", ""))
    if scheme != "s3":
        return Place.open(url or "/", storage).fs
    properties = table.io.properties
    keys = {name: _of_s3(properties, key) for name, key in _KEYS.items()}
    has_keys = keys["key"] is not None
    reached = {
        "endpoint_url": _of_s3(properties, "endpoint"),
        "region": _of_s3(properties, "region"),
        "anonymous": not has_keys and _of_s3(properties, "anonymous") == "true",
    }
    return open_s3(storage.model_copy(update=reached), **(keys if has_keys else {}))


def _of_s3(properties: Mapping[str, str], name: str) -> str | None:
    """A property of S3, or of all clients of AWS."""
    return properties.get(f"s3.{name}") or properties.get(f"client.{name}")


def _misfits(files: Sequence[DataFile], store: AbstractFileSystem, table: Any, schema: Any) -> Iterator[str]:
    """Files in which columns have other names than in the schema, or that lack one with a default.

    The files are looked at only if the table ever had such a change.
    """
    from pyiceberg.io.pyarrow import pyarrow_to_schema
    from pyiceberg.schema import index_name_by_id

    wanted = index_name_by_id(schema)
    filled = {field.field_id for field in schema.fields if field.initial_default is not None}
    schemas = table.schemas()
    is_whole = len(schemas) > max(schemas)  # they are numbered from 0, and old ones may be gone
    if is_whole and not filled and all(index_name_by_id(each).items() <= wanted.items() for each in schemas.values()):
        return

    def fits(file: DataFile) -> bool:
        with store.open(file.path, "rb") as opened:
            held = pq.read_schema(opened)
        try:
            names = index_name_by_id(pyarrow_to_schema(held, table.name_mapping()))
        except (ValueError, TypeError):
            return False
        return bool(names.items() <= wanted.items() and filled <= names.keys())

    with ThreadPoolExecutor(NUM_READERS) as pool:
        yield from (file.path for file, good in zip(files, pool.map(fits, files), strict=True) if not good)
