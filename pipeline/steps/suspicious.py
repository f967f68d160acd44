"""Suspicious pairs as a file for people or annotators."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.errors import ConfigError
from pipeline.faults import storage_errors
from pipeline.shown import shown_path


def write_audit(pairs: pa.Table, path: Path) -> str:
    """Write suspicious pairs as CSV or Parquet, by the ending of the path; what was written, in words.

    Raises a ConfigError if the path ends otherwise.
    """
    if path.suffix not in {".csv", ".parquet"}:
        raise ConfigError(f"--output {shown_path(path)} must end with .csv or .parquet.")
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pairs, path)
        else:
            # Messages stand as JSON in their cells.
            texts = {field.name for field in pairs.schema if pa.types.is_list(field.type)}
            columns = {
                name: [json.dumps(each, ensure_ascii=False) for each in pairs.column(name).to_pylist()]
                if name in texts
                else pairs.column(name)
                for name in pairs.column_names
            }
            csv.write_csv(pa.table(columns), path)
    return f"{pairs.num_rows:,} pairs: {shown_path(path)}"
