"""The section output: where subsets are written."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import LAYOUT, Section, Url
from pipeline.config.table import Table


class Output(Section):
    """Where the subset goes and in which formats."""

    path: Url = Field(json_schema_extra=LAYOUT)
    """Folder or URL of the subset."""
    formats: tuple[Literal["hf", "parquet"], ...] = Field(default=("hf", "parquet"), min_length=1)
    """`hf` is a dataset for `datasets.load_from_disk`."""
    slim: bool = False
    """Keep the columns prompt, chosen and rejected only."""
    partition_by: str | None = Field(default=None, min_length=1)
    """A column of few values, such as `source_name`: Parquet files lie in folders `COLUMN=VALUE`, as Hive, Spark and
    DuckDB read them. The rows of a value stand together, in the order of the source. The column stays in the files."""
    rows_per_file: int = Field(default=100_000, ge=1, json_schema_extra=LAYOUT)
    """Most rows of one file."""
    hub: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$", json_schema_extra=LAYOUT)
    """`ORG/NAME` on the Hugging Face Hub: the subset is pushed there too. A new dataset is private. Subsets of a sweep
    go to `ORG/NAME-VARIANT`. Needs HF_TOKEN or `hf auth login`."""
    table: Table | None = Field(default=None, json_schema_extra=LAYOUT)
    """A table of Iceberg, Delta Lake or Lance: the subset is published there too, in one commit."""

    @field_validator("formats")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a format twice")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _partition_is_written(self) -> "Output":
        if self.partition_by is not None and (self.slim or "parquet" not in self.formats):
            raise ValueError("partition_by wants format parquet and slim: false")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Without a partition that is not asked for."""
        found = super().fingerprint()
        return {key: value for key, value in found.items() if key != "partition_by" or value is not None}
