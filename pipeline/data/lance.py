"""A version of a Lance dataset: `lance://PATH[@VERSION]`, where VERSION is a number or a tag.

Lance files are read by Lance alone, also where rows are deleted or columns were added. So each fragment is shown as a
file that gives rows instead of bytes.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Self

import pyarrow as pa

from pipeline import config
from pipeline.data.place import Place
from pipeline.data.snapshots import DataFile, SnapshotFiles
from pipeline.data.table_libraries import library_errors, location_of, store_options
from pipeline.errors import ConfigError, StorageError
from pipeline.shown import shown_path


class Fragment:
    """A fragment as `sources.probe` and `sources.blocks` read it."""

    def __init__(self, fragment: Any) -> None:
        self._fragment = fragment
        self.schema: pa.Schema = fragment.schema
        self.num_rows: int = fragment.count_rows()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def batches(self, columns: Sequence[str], first_row: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows from `first_row` on, of which deleted ones are none."""
        held = [name for name in self.schema.names if name in columns]
        found: Iterator[pa.RecordBatch] = self._fragment.to_batches(
            columns=held, offset=first_row, batch_size=batch_rows
        )
        return found


class LanceFiles(SnapshotFiles):
    """The fragments of a version. For a path, a file has what the version says of the fragment.

    This names the files of its rows and of its deletions. As these names are unique, it stands for the content, too.
    """

    def __init__(self, dataset: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._dataset = dataset

    def open(self, path: str, mode: str = "rb", **_: Any) -> Fragment:  # noqa: ARG002 - as in fsspec
        """The fragment of this name."""
        return Fragment(self._dataset.get_fragment(int(path.rpartition("/")[2].removesuffix(".lance"))))

    def ukey(self, path: str) -> str:
        """The path, in short."""
        return hashlib.blake2b(self._files[path].path.encode(), digest_size=16).hexdigest()

    checksum = ukey


def open_snapshot(name: str, storage: config.Storage) -> LanceFiles:
    """The fragments of the version that is named, else of the newest. Raises as `open_table`."""
    where = shown_path(f"lance://{name}")
    match = re.fullmatch(r"(.+?)(?:@([^@/]+))?", name.rstrip("/"), re.DOTALL)
    if match is None:
        raise ConfigError(f"{where}: wanted lance://PATH[@VERSION].")
    place, version = Place.open(match[1], storage), match[2]
    try:
        (place / "_versions").check_readable()
    except StorageError as error:
        raise StorageError(f"{where} is no Lance dataset that can be read. {error}") from None
    with library_errors(where):
        import lance

        number = int(version) if version and version.isdigit() else version
        try:
            dataset = lance.dataset(location_of(place), version=number, storage_options=store_options(place, storage))
        except ValueError:
            if version is None:
                raise
            raise StorageError(f"{where}: no such version or tag. Give another one, or none for the newest.") from None
        fragments = {f"{each.fragment_id:05}.lance": each.metadata for each in dataset.get_fragments()}
        files = {
            name: DataFile(str(fragment.to_json()), sum(file.file_size_bytes or 1 for file in fragment.files), {})
            for name, fragment in fragments.items()
        }
    snapshot = str(dataset.version)
    root = f"{location_of(place)}@{snapshot}"
    return LanceFiles(dataset, files=files, protocol="lance", root=root, snapshot=snapshot, storage=storage)
