"""Files that others read, one for each shard and format: written batch by batch on local disk, then created whole.

    hf/train/data-00000-of-000NN.arrow        Arrow streams, with dataset_info.json and state.json: `load_from_disk`
    parquet/train-00000-of-000NN.parquet      with page checksums
    data/train-00000-of-000NN.jsonl           JSON Lines
    report.json, report.html, hf/dataset_dict.json, ...    beside them, before the manifest

Rows of another split lie in files of its name: hf/test/data-..., parquet/test-..., data/test-...
With output.partition_by the Parquet files lie one folder deeper: parquet/lang=de/train-...

The bytes depend on the rows and the settings alone, not on how the rows were cut into tables, nor on time or chance.
So files can be written in any order, by any process, and by two at once; a run that died finds what it wrote when it
is run again.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from pipeline.data.commit import create, create_from_file
from pipeline.data.manifest import File, Manifest, schema_json
from pipeline.data.parts import footer_bytes
from pipeline.data.place import Place, in_order
from pipeline.data.records import Records
from pipeline.data.run import Plan, Run
from pipeline.data.sealed import digest
from pipeline.data.writers import LocalFiles, hf_descriptions
from pipeline.errors import IntegrityError, SchemaError
from pipeline.faults import storage_errors
from pipeline.schema import TRAIN
from pipeline.scratch import scratch_folder

BATCH_ROWS: Final = 4096  # rows of one Arrow batch and of one Parquet row group
REPORT_FILE: Final = "report.json"
PAGE_FILE: Final = "report.html"
_NAMES: Final = {
    "hf": "hf/{split}/data-{index:05d}-of-{num_files:05d}.arrow",
    "parquet": "parquet/{folder}{split}-{index:05d}-of-{num_files:05d}.parquet",
    "jsonl": "data/{split}-{index:05d}-of-{num_files:05d}.jsonl",
}
_SPLIT_OF: Final = re.compile(r"(?:hf/(\w+)/|(?:parquet|data)/(?:[^/=]+=[^/]*/)?(\w+)-)")
_CHUNK_BYTES: Final = 16 * 2**20
_CHANGED: Final = "The chosen rows must not change while they are written; run the same command again."


def file_shards(
    num_rows: Mapping[str, int], rows_per_file: int, folder: str | None = None
) -> tuple[Mapping[str, Any], ...]:
    """The rows of each file, split by split in order of name; no rows make one file without any.

    num_rows: by split. folder: that of Parquet files. A shard names its folder, its split and the first row among those
    of both; one that names no split is of `train`.
    """
    return tuple(
        {
            **({} if folder is None else {"folder": folder}),
            **({} if split == TRAIN else {"split": split}),
            "first_row": start,
            "num_rows": min(rows_per_file, num_rows[split] - start),
        }
        for split in sorted(num_rows)
        for start in range(0, max(1, num_rows[split]), rows_per_file)
    )


def split_of(shard: Mapping[str, Any] | File) -> str:
    """The split of a shard of `file_shards`, or of a file as it is named here."""
    if not isinstance(shard, File):
        return str(shard.get("split", TRAIN))
    found = _SPLIT_OF.match(shard.path)
    return TRAIN if found is None else found[1] or found[2]


def rows_by_split(files: Iterable[File]) -> dict[str, int]:
    """Rows of files of one format, by split, in the order of the files."""
    found: dict[str, int] = {}
    for file in files:
        found[split_of(file)] = found.get(split_of(file), 0) + file.num_rows
    return found


def with_layout(plan: Plan) -> Plan:
    """The plan with its number of rows, formats and columns in the fingerprint; rows per file stay out of it."""
    layout = {
        "num_rows": sum(shard["num_rows"] for shard in plan.shards),
        "formats": sorted(plan.formats),
        "columns": schema_json(plan.schema)["columns"],
    }
    return dataclasses.replace(plan, fingerprint={**plan.fingerprint, "layout": layout})


def write_files(run: Run, tables: Iterable[pa.Table], only: int | None = None) -> list[File]:
    """Create every file of the run that is not there already, in each format, from all its rows in order.

    only: the number of one file; `tables` then hold the rows of its shard and no others.

    Raises:
        SchemaError: other columns than those of the plan.
        IntegrityError: rows are missing or left over, or a file of other content stands in the way.
    """
    stream = _Stream(run, tables)
    indices = range(len(run.plan.shards)) if only is None else [only]
    files = [file for index in indices for file in _write(run, index, stream)]
    if stream.take(1).num_rows:
        raise IntegrityError(f"{run.place}: more rows than were planned. {_CHANGED}")
    return files


def finish_files(run: Run, files: Iterable[File], beside: Mapping[str, bytes], extra: Mapping[str, Any]) -> Manifest:
    """Create what stands beside the files, by path, then the manifest; the manifest that stands is returned.

    Raises:
        IntegrityError: files are missing, or files of other content stand in the way.
    """
    plan, files = run.plan, sorted(files, key=lambda file: file.path)
    num_rows = sum(shard["num_rows"] for shard in plan.shards)
    if sum(file.num_rows for file in files) != num_rows * len(plan.formats):
        raise IntegrityError(f"{run.place}: the files do not hold {num_rows} rows in each format. Use another path.")
    arrow: dict[str, list[File]] = {}
    for file in files:
        if file.path.startswith("hf/"):
            arrow.setdefault(split_of(file), []).append(file)
    described = hf_descriptions(plan.schema, arrow, plan.fingerprint) if arrow else {}
    published = []
    for path, data in {**described, **beside}.items():
        place = run.place / path
        if not create(place, data) and place.read() != data:
            raise _other_content(place)
        published.append(File(path=path, size=len(data), digest=digest(data)))
    facts = {"num_rows": num_rows, "num_kept": num_rows, "beside": tuple(published), "extra": extra}
    return run.publish(run.manifest(files=Records.of(map(dataclasses.asdict, files), File), **facts))


def arrow_tables(dataset: Place, file: File) -> Iterator[pa.Table]:
    """The rows of an Arrow file, some at a time, from a copy on local disk whose digest has been compared.

    Raises:
        IntegrityError: it is not the file that was written.
    """
    with scratch_folder("rows") as folder:
        path = folder / "rows"
        fetch_file(dataset, file, path)
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
            for batch in stream:
                yield pa.Table.from_batches([batch])


def fetch_file(dataset: Place, file: File, path: Path) -> None:
    """Copy a file whose digest the manifest has to local disk.

    Raises:
        IntegrityError: it is not the file that was written.
    """
    place = dataset / file.path
    hasher = _blake2b()
    with storage_errors(str(path)), path.open("wb") as target:
        for chunk in _chunks(place, file.size):
            hasher.update(chunk)
            target.write(chunk)
    if hasher.hexdigest() != file.digest:
        raise IntegrityError(
            f"{place} is not the file that the manifest names: its digest differs. Restore it, or select again."
        )


def check_file(dataset: Place, file: File) -> None:
    """Read a file that a manifest names; raise an IntegrityError if its size or digest is another one."""
    if not _is_same(dataset / file.path, file):
        raise IntegrityError(f"{dataset / file.path} is gone, or not the file that was written. Restore it.")


class _Stream:
    """The rows of several tables, taken in any numbers."""

    def __init__(self, run: Run, tables: Iterable[pa.Table]) -> None:
        self._place, self._tables = run.place, iter(tables)
        self._schema = run.plan.schema.remove_metadata()
        self._rest = pa.Table.from_batches([], self._schema)

    def take(self, num_rows: int) -> pa.Table:
        """The next rows; fewer if there are no more."""
        found = [pa.Table.from_batches([], self._schema)]
        while num_rows:
            if not self._rest.num_rows:
                table = next(self._tables, None)
                if table is None:
                    break
                self._rest = table.replace_schema_metadata(None)
                if not self._rest.schema.equals(self._schema):
                    raise SchemaError(
                        f"{self._place}: a table has {self._rest.schema.names}; wanted {self._schema.names}, with the "
                        "types planned."
                    )
            found.append(self._rest.slice(0, num_rows))
            num_rows -= found[-1].num_rows
            self._rest = self._rest.slice(found[-1].num_rows)
        return pa.concat_tables(found)


def _write(run: Run, index: int, stream: _Stream) -> list[File]:
    plan, num_rows = run.plan, run.plan.shards[index]["num_rows"]
    with scratch_folder("files") as folder:
        where = str(folder)
        with storage_errors(where):
            local = LocalFiles(folder, plan.schema.remove_metadata(), plan.formats)
        try:
            for start in range(0, max(1, num_rows), BATCH_ROWS):
                wanted = min(BATCH_ROWS, num_rows - start)
                batch = stream.take(wanted)
                if batch.num_rows < wanted:
                    missing = num_rows - start - batch.num_rows
                    raise IntegrityError(f"{run.place}: {missing} rows are missing from file {index}. {_CHANGED}")
                # In fresh buffers, so that what lies under nulls, before offsets and in padding does not differ.
                fresh = batch.combine_chunks().take(pa.array(range(batch.num_rows), type=pa.int64()))
                with storage_errors(where):
                    local.write(fresh)
            with storage_errors(where):
                local.close()
        finally:
            local.abandon()
        return list(in_order(lambda each: _published(run, index, *each), local.paths.items()))


def _published(run: Run, index: int, form: str, local: Path) -> File:
    num_rows, size = run.plan.shards[index]["num_rows"], local.stat().st_size
    split, folder = split_of(run.plan.shards[index]), run.plan.shards[index].get("folder")
    alike = [
        i
        for i, shard in enumerate(run.plan.shards)
        if split_of(shard) == split and (form != "parquet" or shard.get("folder") == folder)
    ]
    with local.open("rb") as stream:
        content, footer = hashlib.file_digest(stream, _blake2b).hexdigest(), b""
        if form == "parquet":
            stream.seek(size - 8)
            stream.seek(size - footer_bytes(stream.read()))
            footer = stream.read()
    file = File(
        path=_NAMES[form].format(
            folder="" if folder is None else f"{folder}/", split=split, index=alike.index(index), num_files=len(alike)
        ),
        num_rows=num_rows,
        num_kept=num_rows,
        size=size,
        digest=content,
        footer_digest=digest(footer) if footer else "",
    )
    if not create_from_file(run.place / file.path, local) and not _is_same(run.place / file.path, file):
        raise _other_content(run.place / file.path)
    local.unlink()
    return file


def _is_same(place: Place, file: File) -> bool:
    """Whether the object there has this size and digest."""
    if place.size() != file.size:
        return False
    hasher = _blake2b()
    for chunk in _chunks(place, file.size):
        hasher.update(chunk)
    return bool(hasher.hexdigest() == file.digest)


def _other_content(place: Place) -> IntegrityError:
    return IntegrityError(
        f"{place} was left by an earlier attempt with other content, perhaps by other versions of the libraries. "
        "Use another path, or remove this one."
    )


def _chunks(place: Place, size: int) -> Iterator[bytes]:
    return (place.read_range(start, min(size, start + _CHUNK_BYTES)) for start in range(0, size, _CHUNK_BYTES))


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)
