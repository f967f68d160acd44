"""Reads the rows of a complete subset through its manifest, in order, and only as the bytes it was written with.

Each file is copied to local disk and its digest compared before a row of it is used. Parquet is read where there is
some, else the Arrow files of the Hugging Face folder: the rows are the same.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import IntegrityError, SourceError
from pipeline.scratch import scratch_folder
from pipeline.storage.filesystem import display, read_range, storage_errors
from pipeline.storage.subset import SubsetManifest, open_subset

_CHUNK_BYTES: Final = 16 * 2**20
_BATCH_ROWS: Final = 1024


class SubsetRows:
    """The rows of the subset under `root`.

    Raises:
        SourceError: there is no complete subset.
        IntegrityError: files are gone or cut short.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str) -> None:
        manifest = open_subset(fs, root)
        if manifest is None:
            raise SourceError(
                f"{display(fs, root)} holds no complete subset. Give the folder that `alignpot select` or `run` wrote."
            )
        self.manifest: SubsetManifest = manifest
        self._fs, self._root = fs, root
        parquet = [file for file in manifest.files if file["path"].startswith("parquet/")]
        self._files = parquet or [file for file in manifest.files if file["path"].startswith("hf/")]
        if sum(file["num_rows"] for file in self._files) != manifest.num_rows:
            raise IntegrityError(f"{display(fs, root)}: the files do not hold the rows of the manifest. Select again.")

    def tables(self) -> Iterator[pa.Table]:
        """All rows, some at a time; at least one table, so that the schema is known."""
        for file in self._files:
            with scratch_folder("export") as folder:
                local = folder / "rows"
                self._fetch(file, local)
                yield from _tables(local, is_parquet=file["path"].startswith("parquet/"))

    def _fetch(self, file: Mapping[str, Any], local: Path) -> None:
        full, size = f"{self._root}/{file['path']}", file["size"]
        hasher = hashlib.blake2b(digest_size=16)
        with storage_errors(str(local)), local.open("wb") as target:
            for start in range(0, size, _CHUNK_BYTES):
                chunk = read_range(self._fs, full, start, min(size, start + _CHUNK_BYTES))
                hasher.update(chunk)
                target.write(chunk)
        if hasher.hexdigest() != file["blake2b"]:
            raise IntegrityError(
                f"{display(self._fs, full)} is not the file that the manifest names: its digest differs. Select again."
            )


def _tables(path: Path, *, is_parquet: bool) -> Iterator[pa.Table]:
    if is_parquet:
        with pq.ParquetFile(path) as parquet:
            yield parquet.schema_arrow.empty_table()
            for batch in parquet.iter_batches(_BATCH_ROWS):
                yield pa.Table.from_batches([batch])
        return
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
        yield stream.schema.empty_table()
        for batch in stream:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield pa.Table.from_batches([batch.slice(start, _BATCH_ROWS)])
