"""The section output.table: which table of a data platform gets the subset, and what becomes of the rows there."""

import datetime
import re
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from pipeline.config.load import parse
from pipeline.config.section import LAYOUT, Section, Url
from pipeline.errors import ConfigError
from pipeline.shown import shown_path

Mode = Literal["append", "replace"]
_TARGET: Final = re.compile(r"(?P<kind>iceberg|delta|lance)://(?P<path>.+)", re.DOTALL)
_NAME: Final = re.compile(r"[^/]+/[^/.]+(\.[^/.]+)+")


def _as_text(value: Any) -> Any:
    """YAML makes dates of texts; of other values it would not be known how they were written."""
    return str(value) if type(value) is datetime.date else value


class Table(Section):
    """A table of Iceberg, Delta Lake or Lance that gets the subset in one commit. Needs `alignpot[tables]`."""

    model_config = ConfigDict(json_schema_extra=LAYOUT)

    kind: Literal["iceberg", "delta", "lance"]
    """The format of the table."""
    path: Url
    """For iceberg `CATALOG/NAMESPACE.TABLE`, with a catalog that pyiceberg knows; else folder or URL of the table. A
    table that does not exist is created. Subsets of a sweep go to tables whose names end with that of the variant."""
    mode: Mode = "append"
    """`append` adds the rows, unless they were published there before. `replace` makes them the only ones, of the table
    or of `partition`."""
    partition: dict[str, Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]] | None = None
    """For a table of iceberg or delta that is partitioned by the values of columns: the value of each of them as a
    text, as in `{day: 2026-11-29, round: '3'}`. The rows go there; rows that lack the columns get them. The table must
    exist."""
    tag: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """For lance: names the version that holds the rows."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Table":
        if self.kind == "iceberg" and not _NAME.fullmatch(self.path):
            raise ValueError("path of an Iceberg table must be CATALOG/NAMESPACE.TABLE")
        if self.tag is not None and self.kind != "lance":
            raise ValueError(f"tag is for lance; leave it out for {self.kind}")
        if self.partition is not None and self.kind == "lance":
            raise ValueError("Lance has no partitions; leave partition out, and give another table or a tag")
        return self

    @property
    def url(self) -> str:
        """The table as `alignpot publish` takes it."""
        return f"{self.kind}://{self.path}"


def table_of_variant(kind: str, path: str, variant: str) -> str:
    """The path of the table of one selection of a sweep."""
    if kind == "iceberg":
        return f"{path}_{re.sub(r'[.-]', '_', variant)}"
    return f"{path.rstrip('/')}-{variant}"


def parse_target(url: str, **keys: Any) -> Table:
    """The table that a URL names: `iceberg://CATALOG/NAMESPACE.TABLE`, `delta://PATH` or `lance://PATH`. keys: further
    ones of the section.

    Raises:
        ConfigError: another kind of URL, or keys that do not fit it.
    """
    match = _TARGET.fullmatch(url)
    if match is None:
        raise ConfigError(
            f"{shown_path(url)} is no table; wanted iceberg://CATALOG/NAMESPACE.TABLE, delta://PATH or lance://PATH."
        )
    return parse(Table, {**match.groupdict(), **keys}, "the table")
