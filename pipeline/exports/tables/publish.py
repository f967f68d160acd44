"""`alignpot publish` and `output.table`: the rows of a complete dataset in a table, in one commit.

    open the table -> are the rows there? -> do the columns fit? -> files -> commit -> if somebody was faster, again

A publisher may be killed at any time, run again, or run twice at once: the table gets one commit.
"""

import importlib
import random
import time
from contextlib import ExitStack
from typing import Final

from pipeline import config
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET, kind_of
from pipeline.data.place import Place
from pipeline.data.run import RUN_FILE
from pipeline.data.table_libraries import library_errors
from pipeline.errors import ConfigError, TemporaryError
from pipeline.exports.tables.rows import Rows
from pipeline.exports.tables.table import Overtaken, Table, check_columns, check_types, partition_of
from pipeline.schema import TRAIN
from pipeline.shown import shown_path

_TRIES: Final = 5  # commits of others that may come between
_FIRST_WAIT_S: Final = 0.1


def check_target(target: config.Table, storage: config.Storage) -> None:
    """Check before any work that the table can be opened and its folder written.

    Raises:
        ConfigError: the library is not installed, the catalog is not described, the folder holds a dataset, or the
            table has other partitions.
        StorageError: no permission, or a store that cannot create an object only if it is absent.
        TemporaryError: the catalog or the store does not answer.
    """
    partition_of(open_table(target, storage), target, shown_path(target.url))
    _check_folder(target, storage)


def publish(source: Place, target: config.Table, storage: config.Storage, split: str = TRAIN) -> str:
    """Publish the kept rows of a subset or of another dataset, unless they are there; returns the text to print.

    split: of a subset, the rows that are published.

    Raises:
        SourceError: no complete dataset.
        ConfigError: no such split, or no such partition.
        SchemaError: the table cannot hold a column, or has others, or rows belong to another partition.
        TemporaryError: the store or the catalog does not answer, or others commit all the time.
    """
    where = shown_path(target.url)
    dataset = Dataset.open(source, kind_of(source))
    others = "".join(
        f"\n  not published: {num_rows:,} pairs of split {name}"
        for name, num_rows in dataset.splits.items()
        if name != split and dataset.manifest.kind == SUBSET
    )
    with ExitStack() as stack:
        table = open_table(target, storage)
        rows = Rows(dataset, split, stack, partition_of(table, target, where))
        check_types(rows, target.kind, where)
        for attempt in range(_TRIES):
            with library_errors(where):
                is_held = table.holds(rows, target.mode)
            if is_held:
                by = "published in the meantime" if attempt else "already published"
                return f"{by}, nothing changed: {where}{others}"
            check_columns(table, rows, where)
            if not attempt:
                rows.check_partition(where)
                _check_folder(target, storage)
            try:
                with library_errors(where):
                    version = table.commit(rows, target.mode)
            except Overtaken:
                time.sleep(random.uniform(0, _FIRST_WAIT_S * 2**attempt))  # noqa: S311
                table = open_table(target, storage)
            else:
                return f"published {rows.num_rows:,} pairs: {where}, version {version}{others}"
    raise TemporaryError(f"{where}: others commit there all the time. Run the same command again.")


def _check_folder(target: config.Table, storage: config.Storage) -> None:
    if target.kind != "iceberg":
        place = Place.open(target.path, storage)
        if (place / RUN_FILE).size() is not None:
            raise ConfigError(f"{place} holds a dataset of alignpot. Give the table a folder of its own.")
        check_writable(place)


def open_table(target: config.Table, storage: config.Storage) -> Table:
    """The table as it is now.

    Raises:
        ConfigError: the library is not installed, or the catalog is not described.
        StorageError: no permission, no such namespace, or a table that is not supported.
        TemporaryError: the catalog or the store does not answer.
    """
    where = shown_path(target.url)
    try:
        module = importlib.import_module(f"pipeline.exports.tables.{target.kind}")
    except ImportError as error:
        raise ConfigError(
            f"{where}: {target.kind} needs a package that is not installed ({error.name}). "
            "Run: pip install 'alignpot[tables]'"
        ) from None
    with library_errors(where):
        table: Table = module.open_table(target, storage)
    return table
