"""Files in the formats that others read, on local disk, and the descriptions that `datasets` wants beside them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import File
from pipeline.data.sealed import fingerprint_digest


class JsonLinesWriter:
    """Rows as JSON Lines: UTF-8, columns in the order of the table; a number that is not finite becomes null."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write_table(self, table: pa.Table) -> None:
        """Append one line per row."""
        for row in table.to_pylist():
            text = json.dumps(finite(row), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            self._file.write(text.encode() + b"\n")

    def close(self) -> None:
        """Complete the file."""
        self._file.close()


def finite(value: Any) -> Any:
    """The value with None for every number that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list) else value


_WRITERS: Final[Mapping[str, Callable[[Path, pa.Schema], Any]]] = {
    "hf": lambda path, schema: pa.ipc.new_stream(str(path), schema),
    "parquet": lambda path, schema: pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True),
    "jsonl": lambda path, _: JsonLinesWriter(path),
}


class LocalFiles:
    """One file per format, growing batch by batch in `folder`; each format has a thread."""

    def __init__(self, folder: Path, schema: pa.Schema, formats: Sequence[str]) -> None:
        self.paths = {form: folder / f"current.{form}" for form in formats}
        self._writers: list[Any] = [_WRITERS[form](path, schema) for form, path in self.paths.items()]
        self._pool = ThreadPoolExecutor(len(self._writers))

    def write(self, table: pa.Table) -> None:
        """Append one batch: a record batch in Arrow, a row group in Parquet, lines in JSON Lines."""
        list(self._pool.map(lambda writer: writer.write_table(table), self._writers))

    def close(self) -> None:
        """Complete the files."""
        while self._writers:
            self._writers.pop().close()

    def abandon(self) -> None:
        """Close the files that are still open; their content does not matter any more."""
        self._pool.shutdown()
        for writer in self._writers:
            try:
                writer.close()
            except OSError:
                continue


def hf_descriptions(
    schema: pa.Schema, splits: Mapping[str, Sequence[File]], run: Mapping[str, Any]
) -> dict[str, bytes]:
    """The JSON files of a `load_from_disk` folder as `datasets` writes them, by path.

    splits: the Arrow files of each split, in order. run: the fingerprint of what made them.
    """
    info = {
        "citation": "",
        "description": "",
        "features": {field.name: _feature(field.type) for field in schema},
        "homepage": "",
        "license": "",
    }
    described = {"hf/dataset_dict.json": json.dumps({"splits": [*splits]}).encode()}
    for name, files in splits.items():
        described[f"hf/{name}/dataset_info.json"] = json.dumps(info, indent=2).encode()
        described[f"hf/{name}/state.json"] = json.dumps(_state(name, files, run), indent=2).encode()
    return described


def _state(split: str, files: Sequence[File], run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_data_files": [{"filename": file.path.rpartition("/")[2]} for file in files],
        # Keys the caches of its users, so it must follow the content.
        "_fingerprint": fingerprint_digest({"files": [file.digest for file in files], "run": run})[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """A column as `datasets` describes it. Importing it takes seconds, so it is asked about uncommon types only."""
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return {"dtype": str(kind), "_type": "Value"}
    if kind == pa.float64():
        return {"dtype": "float64", "_type": "Value"}
    from datasets import Features

    found: dict[str, Any] = Features.from_arrow_schema(pa.schema([pa.field("column", kind)])).to_dict()["column"]
    return found
