"""What a command tells: the datasets that it reads and writes, and what came of it. Never the text of a row."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa

from pipeline.data.dataset import Dataset
from pipeline.data.manifest import EXPORT, kind_of
from pipeline.data.place import Place
from pipeline.data.sealed import fingerprint_digest

_URL: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)
_ON_HUB: Final = re.compile(r"([^/@]+/[^/@]+)(?:@[^/]*)?(.*)", re.DOTALL)
_TABLE: Final = re.compile(
    r"(?:(?P<iceberg>iceberg://[^/@]+/[^/@]+)|(?:delta|lance)://(?P<path>.+?))(?:@[\w.-]+)?", re.DOTALL
)
_SPELLINGS: Final = {"s3a": "s3", "gcs": "gs"}


class Name(NamedTuple):
    """A dataset as OpenLineage names it: the store, and the place in it."""

    namespace: str
    name: str

    @classmethod
    def of(cls, url: str) -> "Name":
        """The name of what lies at a path or URL. A revision of the hub or the version of a table is no part of it."""
        if table := _TABLE.fullmatch(url):
            url = table["iceberg"] or table["path"]
        match = _URL.fullmatch(url)
        scheme, authority, path = match.groups() if match else ("file", "", url)
        if scheme in ("file", "local"):
            return cls("file", str(Path(url.rpartition("://")[2]).expanduser().resolve()))
        if scheme == "hf" and (on_hub := _ON_HUB.fullmatch(path)):
            path = on_hub[1] + on_hub[2]
        return cls(f"{_SPELLINGS.get(scheme, scheme)}://{authority}", path.strip("/") or "/")


class Origin(NamedTuple):
    """A column that another one comes from. is_same: it is that column, as it was."""

    dataset: Name
    column: str
    is_same: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A dataset that is read or written, as far as it is known."""

    url: str
    schema: pa.Schema | None = None
    """Of its columns; type null where the type is not known."""
    version: str | None = None
    num_rows: int | None = None
    size: int | None = None
    """Bytes."""
    num_files: int | None = None
    origins: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict)
    """Where its columns come from."""
    deciders: tuple[Origin, ...] = ()
    """Columns that decide which rows it has."""

    @classmethod
    def of(cls, dataset: Dataset, url: str, **lineage: Any) -> "Data":
        """A complete dataset of ours. lineage: origins and deciders."""
        manifest = dataset.manifest
        return cls(
            url=url,
            schema=manifest.schema,
            version=fingerprint_digest(manifest.fingerprint),
            num_rows=manifest.num_rows,
            size=sum(file.size for file in manifest.files),
            num_files=len(manifest.files),
            **lineage,
        )

    @property
    def name(self) -> Name:
        """See Name."""
        return Name.of(self.url)


@dataclass(slots=True, kw_only=True)
class Facts:
    """Everything that a command has told so far."""

    command: str
    place: str
    """Path or URL of what it makes in the end."""
    config: Mapping[str, Any]
    """Resolved, as JSON values."""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """Of all that it makes; empty if it was not known before something failed."""
    inputs: list[Data] = field(default_factory=list)
    outputs: list[Data] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    reports: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """By path."""


def tell_copy(
    facts: Facts, subset: str, source: Place, output: Place | None = None, *, kind: str | None = None
) -> None:
    """A dataset in another form at the place that the command makes; `output` where it is complete there.

    kind: of the dataset, if it is neither a subset nor scored or rewarded rows.
    """
    made = Dataset.find(source, kind or kind_of(source))
    facts.inputs = [Data(url=subset) if made is None else Data.of(made, subset)]
    facts.fingerprint = {"subset": facts.inputs[0].version, **facts.config}
    facts.outputs = [Data(url=facts.place) if output is None else Data.of(Dataset.open(output, EXPORT), facts.place)]
