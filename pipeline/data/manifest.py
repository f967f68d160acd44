"""The manifest of a complete run: `_SUCCESS.json`, its last object. Readers read what it lists and nothing else."""

import base64
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

from pipeline.data.place import Place
from pipeline.data.records import Records
from pipeline.data.sealed import read_sealed
from pipeline.drops import share_of_faults
from pipeline.errors import FingerprintError, IntegrityError

MANIFEST_FILE: Final = "_SUCCESS.json"
SCORED: Final = "scored"
PAIRS: Final = "pairs"
LAZY: Final = "lazy"
"""Pairs with their rewards; rounds of scoring and the scored datasets made of them lie below, see `data.lazy`."""
REWARDED: Final = "rewarded"
SUBSET: Final = "subset"
EXPORT: Final = "export"
_ROLES: Final = ("policy", "reference", "reward")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file as the manifest names it."""

    path: str
    """Relative to the dataset."""
    num_rows: int = 0
    num_kept: int = 0
    size: int
    """Bytes."""
    digest: str = ""
    """blake2b of the whole file; empty for parts."""
    footer_digest: str = ""
    """blake2b of the footer of a Parquet file, which holds the place and size of every page; pages have checksums."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A complete run: its settings, the outcome of every row, and the files that hold the rows."""

    kind: str
    """What the rows are: scored pairs, a subset, or what self-play makes on the way to them."""
    version: str
    config: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    source_format: str
    schema: pa.Schema
    num_rows: int = 0
    num_kept: int = 0
    num_dropped: int = 0
    drops: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    """Dropped rows by stage, then reason."""
    num_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Sums over kept rows, by column."""
    id_digest: str = ""
    """Identifies the set of kept ids, see PartSummary."""
    files: Records[File] = dataclasses.field(default_factory=lambda: Records.of((), File))
    beside: tuple[File, ...] = ()
    """The report, and descriptions of the data files for their readers."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the run added: what the process that completed it took, the selection, the digest of a trained model."""

    @property
    def fraction_dropped(self) -> float:
        """See `drops.share_of_faults`."""
        return share_of_faults(self.drops_by_reason, self.num_rows)

    @property
    def drops_by_reason(self) -> dict[str, int]:
        """Dropped rows by "stage: reason"."""
        return {f"{stage}: {reason}": n for stage, reasons in self.drops.items() for reason, n in reasons.items()}

    def to_json(self) -> dict[str, Any]:
        """What `find_manifest` reads back."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        beside = [dataclasses.asdict(file) for file in self.beside]
        return {**own, "beside": beside, "schema": schema_json(self.schema)}


def kind_of(place: Place) -> str:
    """The kind of a complete run there; a subset if there is none."""
    kind = str((read_sealed(place / MANIFEST_FILE, records="files") or {}).get("kind"))
    kind = SCORED if kind == LAZY else kind
    return kind if kind in (SCORED, REWARDED) else SUBSET


def find_manifest(place: Place, kind: str, *, or_lazy: bool = False) -> Manifest | None:
    """The manifest of the run of that kind at `place`; None if there is none, or if it is not complete.

    or_lazy: one of kind LAZY is given too.

    Raises:
        FingerprintError: there is one of another kind.
        IntegrityError: it is damaged.
    """
    path = place / MANIFEST_FILE
    value = read_sealed(path, records="files")
    if value is None:
        return None
    try:
        check_kind(value, LAZY if or_lazy and value["kind"] == LAZY else kind, path)
        files, beside = value.pop("files").of_kind(File), tuple(File(**each) for each in value.pop("beside"))
        return Manifest(**{**value, "files": files, "beside": beside, "schema": schema_of(value["schema"])})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged ({type(error).__name__}). Restore it, or use another path.") from None


def check_kind(stored: Mapping[str, Any], kind: str, path: Place) -> None:
    """Raise a FingerprintError if run.json or the manifest is of another kind."""
    if stored["kind"] != kind:
        raise FingerprintError(f"{path} belongs to a run of kind {stored['kind']!r}, not {kind}. Use another path.")


def schema_json(schema: pa.Schema) -> dict[str, Any]:
    """A schema as JSON: readable by people, and exact for machines."""
    bare = schema.remove_metadata()
    return {
        "columns": {field.name: str(field.type) for field in bare},
        "arrow": base64.b64encode(bare.serialize().to_pybytes()).decode("ascii"),
    }


def schema_of(value: Mapping[str, Any]) -> pa.Schema:
    """The schema that `schema_json` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value["arrow"])))


def models_of(
    scored_by: Mapping[str, Any], made_from: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """What a subset's manifest says of each model: its role, its fingerprint and its section of the config."""
    for role in _ROLES:
        yield role, scored_by.get(role), made_from.get(role) or {}
    for name, fingerprint in (scored_by.get("rewards") or {}).items():
        yield f"reward {name}", fingerprint, (made_from.get("rewards") or {}).get(name) or {}
