"""A Lance dataset.

Lance names its files itself and by chance. Those of a publisher that was killed show nowhere, until
`cleanup_old_versions` of Lance removes them. The digest stands in the metadata of the schema, which each version holds.

An `Append` of Lance never conflicts with another one, so two publishers would add the rows twice. Here rows are
appended by a `Merge`, which gives all fragments and the schema: it conflicts with whatever changes either.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import write_fragments

from pipeline import config
from pipeline.config.table import Mode
from pipeline.data.place import Place
from pipeline.data.table_libraries import location_of, store_options
from pipeline.errors import StorageError
from pipeline.exports.tables.rows import Rows
from pipeline.exports.tables.table import FINGERPRINT, MODE, PUBLISHED, Overtaken
from pipeline.shown import shown


def open_table(target: config.Table, storage: config.Storage) -> "LanceTable":
    """The dataset as it is now."""
    place = Place.open(target.path, storage)
    options = store_options(place, storage)
    try:
        dataset = lance.dataset(location_of(place), storage_options=options)
    except ValueError:
        # Of a store that fails, Lance says the same; it is raised here.
        if not _is_there(place):
            return LanceTable(place, None, options, target.tag)
        dataset = lance.dataset(location_of(place), storage_options=options)  # somebody has just created it
    return LanceTable(place, dataset, options, target.tag)


class LanceTable:
    """A `table.Table`. tag: names the version that holds the rows."""

    def __init__(self, place: Place, dataset: Any, options: dict[str, str] | None, tag: str | None) -> None:
        self._place, self._dataset, self._options, self._tag = place, dataset, options, tag

    @property
    def columns(self) -> pa.Schema | None:
        """Its columns; None if there is no dataset."""
        return None if self._dataset is None else self._dataset.schema

    @property
    def partitioned_by(self) -> tuple[str, ...]:
        """None: Lance has no partitions."""
        return ()

    def holds(self, rows: Rows, mode: Mode) -> bool:
        """Whether the schema's metadata says so, and the tag is there."""
        version = self._published(rows.mark, mode)
        return version is not None and (self._tag is None or self._tagged() == version)

    def commit(self, rows: Rows, mode: Mode) -> str:
        """Write fragments and commit them, then the tag; the version of the dataset."""
        version, tagged = self._published(rows.mark, mode), self._tagged()
        if tagged is not None:
            raise StorageError(f"{self._place}: tag {shown(self._tag)} names version {tagged}. Give another tag.")
        if version is None:
            try:
                version = self._committed(rows, mode)
            except OSError as error:
                was_created = self._dataset is None and _is_there(self._place)
                if was_created or isinstance(error, CommitConflictError):
                    raise Overtaken from None
                raise
        if self._tag is not None:
            lance.dataset(location_of(self._place), storage_options=self._options).tags.create(self._tag, version)
        return str(version)

    def _published(self, mark: str, mode: Mode) -> int | None:
        """The version that the rows were published in."""
        if self._dataset is None:
            return None
        value = (self._dataset.schema.metadata or {}).get((PUBLISHED + mark).encode())
        if value is None:
            return None
        how, version = value.decode().split()
        is_so = mode == "append" or (how == mode and int(version) == self._dataset.version)
        return int(version) if is_so else None

    def _tagged(self) -> int | None:
        tag = None if self._tag is None or self._dataset is None else self._dataset.tags.list().get(self._tag)
        return None if tag is None else int(tag["version"])

    def _committed(self, rows: Rows, mode: Mode) -> int:
        ds, location = self._dataset, location_of(self._place)
        read = 0 if ds is None else ds.version
        marks = {PUBLISHED + rows.mark: f"{mode} {read + 1}"}
        operation: Any
        if ds is not None and mode == "append":
            names = [name for name in ds.schema.names if name in rows.schema.names]
            new = write_fragments(rows.batches(names), ds, mode="append")
            for number, fragment in enumerate(new, _next_fragment(ds)):
                fragment.id = number
            fragments = [*(each.metadata for each in ds.get_fragments()), *new]
            operation = lance.LanceOperation.Merge(fragments, _marked(ds.lance_schema, marks))
        else:
            reader = rows.batches(rows.schema.names)
            write = "create" if ds is None else "overwrite"
            new = write_fragments(reader, location, mode=write, storage_options=self._options)
            operation = lance.LanceOperation.Overwrite(rows.schema.with_metadata(marks), new)
        about = {FINGERPRINT: rows.mark, MODE: mode}
        change = lance.Transaction(read, operation, transaction_properties=about)
        # Without retries, so that an `Overwrite` conflicts with other commits too.
        done = lance.LanceDataset.commit(location, change, storage_options=self._options, max_retries=0)
        return int(done.version)


def _is_there(place: Place) -> bool:
    return any(re.fullmatch(r"\d+\.manifest", name) for name in (place / "_versions").sizes())


def _marked(schema: Any, marks: Mapping[str, str]) -> Any:
    """The schema with these texts in its metadata. One made from an Arrow schema would number the columns anew."""
    make, (metadata, *columns) = schema.__reduce__()
    texts = {key: [*value.encode()] for key, value in marks.items()}
    return make(json.dumps({**json.loads(metadata), **texts}), *columns)


def _next_fragment(dataset: Any) -> int:
    """A fragment's number that was never used: an index may cover one that is gone."""
    indexed = (
        number for index in dataset.describe_indices() for part in index.segments for number in part.fragment_ids
    )
    newest: int = max([-1, *indexed, *(each.fragment_id for each in dataset.get_fragments())])
    return newest + 1
