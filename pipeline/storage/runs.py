"""Claims an output for one run: `run.json`, put if absent, is the first object of every scored dataset and subset.

It holds the fingerprint (everything that can move a number) and the plan. Whoever comes second with the same
fingerprint goes on with the stored plan, whatever plan it brought along; another fingerprint is refused, naming the
fields. So results of different fingerprints are never mixed, and a run may be started any number of times.

Every JSON file of ours ends with a digest of the rest, so that a damaged one is refused rather than believed.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import fsspec
import pyarrow as pa

from pipeline.errors import FingerprintError, IntegrityError, TemporaryError
from pipeline.shown import shown
from pipeline.storage.commit import clear_leftovers, create
from pipeline.storage.filesystem import display, read_bytes

RUN_FILE: Final = "run.json"
SCORED_KIND: Final = "scored"
FORMAT: Final = 2  # layout of run.json, _SUCCESS.json and the parts; another number is another layout

_ABSENT: Final = "nothing"
_SEAL: Final = "seal"
_MOST_NAMED: Final = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """What one part must look like: the small share of a plan that a worker needs."""

    index: int
    num_rows: int | None
    """Null where only the work itself tells how many rows come out."""
    schema: pa.Schema
    fingerprint_digest: str
    source_digest: str | None = None
    """Of the file that the rows must be read from; null where they come from no file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a dataset is made from and into which parts; part i holds the rows of shards[i]."""

    fingerprint: Mapping[str, Any]
    """JSON values of everything that can move a number."""
    shards: tuple[Mapping[str, Any], ...]
    """JSON values: `num_rows`, where it is known beforehand, and whatever else leads to the rows in the source."""
    schema: pa.Schema
    config: Mapping[str, Any]
    """The resolved config, for people; nothing is read back from it."""
    version: str
    source_format: str
    kind: str = SCORED_KIND
    """What the rows are: scored pairs, or what self-play makes on the way to them."""

    def part_specs(self, indices: Iterable[int]) -> dict[int, PartSpec]:
        """What workers need to commit these parts."""
        source = self.fingerprint.get("source")
        digests = source.get("files", {}) if isinstance(source, Mapping) else {}
        run = fingerprint_digest(self.fingerprint)
        return {
            index: PartSpec(
                index=index,
                num_rows=self.shards[index].get("num_rows"),
                schema=self.schema,
                fingerprint_digest=run,
                source_digest=digests.get(self.shards[index].get("file")),
            )
            for index in indices
        }

    def part_spec(self, index: int) -> PartSpec:
        """What a worker needs to commit part `index`."""
        return self.part_specs([index])[index]


def begin_run(fs: fsspec.AbstractFileSystem, root: str, plan: RunPlan) -> RunPlan:
    """Claim `root` for `plan`, or join the run of the same fingerprint that is there: the stored plan is returned.

    Raises:
        FingerprintError: the run there has another fingerprint, is of another kind, or has another layout.
        IntegrityError: its run.json is damaged.
    """
    stored = claim(fs, root, kind=plan.kind, fingerprint=plan.fingerprint, body=_body(plan))
    return _plan(stored, display(fs, f"{root}/{RUN_FILE}"))


def load_plan(fs: fsspec.AbstractFileSystem, root: str, kind: str = SCORED_KIND) -> RunPlan | None:
    """The plan of the run of that kind under `root`; None if none was begun."""
    path = f"{root}/{RUN_FILE}"
    stored = read_sealed(fs, path)
    if stored is None:
        return None
    where = display(fs, path)
    _check_kind(stored, kind, where)
    return _plan(stored, where)


def claim(
    fs: fsspec.AbstractFileSystem, root: str, *, kind: str, fingerprint: Mapping[str, Any], body: Mapping[str, Any]
) -> dict[str, Any]:
    """Create `root`/run.json, or check the one there against `fingerprint`; the stored content either way."""
    path = f"{root}/{RUN_FILE}"
    wanted = {"kind": kind, "fingerprint": _plain(fingerprint), **_plain(body)}
    stored = read_sealed(fs, path)
    if stored is None:
        stored = wanted if create(fs, path, sealed(wanted)) else read_sealed(fs, path)
    where = display(fs, path)
    if stored is None:
        raise TemporaryError(f"{where} went away while it was read. Run the same command again.")
    _check_kind(stored, kind, where)
    _check_fingerprint(stored.get("fingerprint"), wanted["fingerprint"], where)
    clear_leftovers(fs, root)
    return stored


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """A short name of the fingerprint: 32 hex digits, independent of the order of keys."""
    text = json.dumps(_plain(fingerprint), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(stored: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every field that differs, as (dotted name, stored value, wanted value); "nothing" stands for a missing one."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted({*stored, *wanted}):
            below = f"{path}.{key}" if path else key
            yield from differences(stored.get(key, _ABSENT), wanted.get(key, _ABSENT), below)
    elif stored != wanted or isinstance(stored, bool) != isinstance(wanted, bool):
        yield path or "fingerprint", stored, wanted


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


def sealed(value: Mapping[str, Any]) -> bytes:
    """Readable JSON with the layout's number and, as its `seal`, a digest of the rest; the same bytes for one value.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    whole = {"format": FORMAT, **value}
    whole[_SEAL] = fingerprint_digest(whole)
    return (json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_sealed(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """The value that `sealed` wrote to `path`; None where there is no object.

    Raises:
        IntegrityError: it is damaged.
        FingerprintError: it has a layout that this version does not know.
    """
    data = read_bytes(fs, path)
    if data is None:
        return None
    where = display(fs, path)
    try:
        value = json.loads(data)
        layout, digest = value.pop("format", None), value.pop(_SEAL, None)
        is_whole = digest == fingerprint_digest({"format": layout, **value})
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise IntegrityError(f"{where} is damaged: not a JSON mapping. Restore it, or use another path.") from None
    if layout != FORMAT and (is_whole or digest is None):
        raise FingerprintError(
            f"{where} has layout {layout!r}; this version reads {FORMAT}. "
            "Use another path, or the version that wrote it."
        )
    if not is_whole:
        raise IntegrityError(f"{where} is damaged: its digest is another one. Restore it, or use another path.")
    return dict(value)


def _plain(value: Mapping[str, Any]) -> Any:
    """The value as JSON gives it back, so that a tuple equals the list it is stored as."""
    return json.loads(json.dumps(value, allow_nan=False))


def _check_kind(stored: Mapping[str, Any], kind: str, where: str) -> None:
    if stored.get("kind") != kind:
        raise FingerprintError(
            f"{where} belongs to a run of kind {stored.get('kind')!r}, not {kind}. Use another path."
        )


def _check_fingerprint(stored: Any, wanted: Any, where: str) -> None:
    found = list(differences(stored, wanted))
    if not found:
        return
    lines = [f"  {shown(name)}: {_short(old)} there, {_short(new)} now" for name, old, new in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        lines.append(f"  and {len(found) - _MOST_NAMED} more")
    raise FingerprintError(
        f"{where} was begun with other settings, whose results must not be mixed with these:\n"
        + "\n".join(lines)
        + "\nUse another output path, or go back to the settings there."
    )


def _short(value: Any) -> str:
    return _ABSENT if value == _ABSENT else shown(json.dumps(value, ensure_ascii=False))


def _body(plan: RunPlan) -> dict[str, Any]:
    return {
        "version": plan.version,
        "source_format": plan.source_format,
        "schema": schema_json(plan.schema),
        "config": dict(plan.config),
        "shards": [dict(shard) for shard in plan.shards],
    }


def _plan(stored: Mapping[str, Any], where: str) -> RunPlan:
    try:
        return RunPlan(
            fingerprint=stored["fingerprint"],
            shards=tuple(stored["shards"]),
            schema=schema_of(stored["schema"]),
            config=stored["config"],
            version=stored["version"],
            source_format=stored["source_format"],
            kind=stored["kind"],
        )
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{where} is damaged ({type(error).__name__}). Use another path.") from None
