"""The files of a subset while they grow on local disk, and the descriptions that `datasets` wants beside them.

Knows the layouts of the formats, not where they are published.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class SubsetFile:
    """One file per format, growing batch by batch in `folder`."""

    def __init__(self, folder: Path, schema: pa.Schema, formats: Sequence[str]) -> None:
        self.num_rows = 0
        self.paths = {form: folder / f"current.{form}" for form in formats}
        self._writers: list[Any] = []
        if "hf" in formats:
            self._writers.append(pa.ipc.new_stream(str(self.paths["hf"]), schema))
        if "parquet" in formats:
            self._writers.append(
                pq.ParquetWriter(self.paths["parquet"], schema, compression="zstd", write_page_checksum=True)
            )

    def write(self, table: pa.Table) -> None:
        """Append one batch: a record batch in Arrow, a row group in Parquet."""
        self.num_rows += table.num_rows
        for writer in self._writers:
            writer.write_table(table)

    def close(self) -> None:
        """Complete the files."""
        while self._writers:
            self._writers.pop().close()

    def abandon(self) -> None:
        """Close what is open without regard to what becomes of it."""
        for writer in self._writers:
            try:
                writer.close()
            except OSError:
                continue


def dataset_info_json(schema: pa.Schema) -> bytes:
    """dataset_info.json as `datasets` writes it."""
    from datasets import Features

    info = {
        "citation": "",
        "description": "",
        "features": Features.from_arrow_schema(schema).to_dict(),
        "homepage": "",
        "license": "",
    }
    return json.dumps(info, indent=2).encode()


def state_json(file_names: Sequence[str], fingerprint: str) -> bytes:
    """state.json as `datasets` writes it; `fingerprint` keys the caches of its users, so it must follow the content."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in file_names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    return json.dumps(state, indent=2, sort_keys=True).encode()
