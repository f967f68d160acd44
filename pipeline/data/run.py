"""One run of anything that writes: claim the place, see what is done, create what is not, publish the manifest last.

`run.json`, put if absent, is the first object. It holds the fingerprint (everything that can move a number) and the
plan. A second run with the same fingerprint continues the stored plan, even if its own plan differs; another
fingerprint is refused, naming the fields. So results of different fingerprints are never mixed, and a run may be
started any number of times. `_SUCCESS.json`, put if absent, is the last object.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.data.commit import clear_leftovers, create
from pipeline.data.manifest import (
    LAZY,
    MANIFEST_FILE,
    File,
    Manifest,
    check_kind,
    find_manifest,
    schema_json,
    schema_of,
)
from pipeline.data.parts import PartSpec, PartSummary, add_id_digests, part_path, part_sizes, read_part_summary
from pipeline.data.place import Place, in_order
from pipeline.data.records import Records
from pipeline.data.sealed import ABSENT, as_json, differences, fingerprint_digest, read_sealed, sealed
from pipeline.errors import FingerprintError, IntegrityError, TemporaryError
from pipeline.shown import listed, shown

RUN_FILE: Final = "run.json"
MINOR_VERSION: Final = ".".join(__version__.split(".")[:2])
"""Versions of one minor number give the same rows, so a run may be resumed with either."""
_MOST_NAMED: Final = 10
_WAVE_PARTS: Final = 16_384


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run makes, and of which shards; shard i becomes part i, or file i of each format."""

    kind: str
    fingerprint: Mapping[str, Any]
    """JSON values of everything that can move a number."""
    config: Mapping[str, Any]
    """The resolved config, for people; nothing is read back from it."""
    schema: pa.Schema = dataclasses.field(default_factory=lambda: pa.schema([]))
    shards: Sequence[Mapping[str, Any]] = ()
    """JSON values: `num_rows`, if known beforehand, and how to find the rows in the source."""
    formats: tuple[str, ...] = ()
    """hf, parquet, jsonl for files that others read; empty for parts."""
    source_format: str = "alignpot"
    version: str = __version__

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


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A place that is claimed, and the plan that stands there; picklable."""

    place: Place
    plan: Plan

    @classmethod
    def claim(cls, place: Place, plan: Plan) -> "Run":
        """Create run.json, or join the run of the same fingerprint that is there.

        Raises:
            FingerprintError: the run there has another fingerprint, is of another kind, or has another layout.
            IntegrityError: its run.json is damaged.
        """
        path = place / RUN_FILE
        fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(Plan)}
        fields |= {"schema": schema_json(plan.schema), "shards": _compact(plan.shards)}
        wanted = {name: value if name == "shards" else as_json(value) for name, value in fields.items()}
        stored = _read(path)
        if stored is None:
            stored = wanted if create(path, sealed(wanted)) else _read(path)
        if stored is None:
            raise TemporaryError(f"{path} went away while it was read. Run the same command again.")
        joined = _plan(stored, plan.kind, path)
        _check_fingerprint(joined.fingerprint, wanted["fingerprint"], path)
        clear_leftovers(place)
        return cls(place, joined)

    def pending(self) -> NDArray[np.int64]:
        """Indices of the shards that have no part yet; other objects in the folder are ignored."""
        return np.flatnonzero(part_sizes(self.place, len(self.plan.shards)) < 0)

    def finish(self, extra: Mapping[str, Any], check: Callable[[Manifest], None] | None = None) -> Manifest:
        """Check every part against the plan and publish the manifest; one that is there is checked and returned.

        check: raises if the dataset must not be published.

        Raises:
            IntegrityError: parts are missing, damaged or short, or differ from the manifest that is there.
        """
        return self.publish(_manifest_of_parts(self, extra), check)

    def manifest(self, **facts: Any) -> Manifest:
        """A manifest of this run with these facts."""
        about = ("kind", "version", "config", "fingerprint", "source_format", "schema")
        return Manifest(**{name: getattr(self.plan, name) for name in about}, **facts)

    def publish(self, manifest: Manifest, check: Callable[[Manifest], None] | None = None) -> Manifest:
        """Create the manifest, or compare it with the one that is there, which is returned. Raises as `finish`."""
        path = self.place / MANIFEST_FILE
        if path.size() is None:
            if check is not None:
                check(manifest)
            if create(path, sealed(manifest.to_json())):
                return manifest
        stored = find_manifest(self.place, self.plan.kind)
        assert stored is not None  # noqa: S101
        there, ours = stored.to_json(), manifest.to_json()
        compared = [name for name in ours if name not in ("version", "config", "extra", "beside", "files")]
        differing = [name for name in compared if as_json(there[name]) != as_json(ours[name])]
        differing += ["files"] * (there["files"] != ours["files"])
        if differing:
            raise IntegrityError(
                f"{path} and the files beside it differ in {', '.join(differing)}: they were changed after the run was "
                "complete. Restore them, or use another path."
            )
        return stored


def find_plan(place: Place, kind: str, *, or_lazy: bool = False) -> Plan | None:
    """The plan of the run of that kind at `place`; None if none was begun. Raises as `Run.claim`.

    or_lazy: one of kind LAZY is given too.
    """
    path = place / RUN_FILE
    stored = _read(path)
    if stored is None:
        return None
    return _plan(stored, LAZY if or_lazy and stored.get("kind") == LAZY else kind, path)


def check_claim(place: Place, kind: str, fingerprint: Mapping[str, Any]) -> None:
    """See before any work that `place` is free, or holds a run of that kind with these values in its fingerprint.

    Raises:
        FingerprintError: it holds another run.
        IntegrityError: its run.json is damaged.
    """
    plan = find_plan(place, kind)
    if plan is not None:
        known = {name: value for name, value in plan.fingerprint.items() if name in fingerprint}
        _check_fingerprint(known, as_json(fingerprint), place / RUN_FILE)


def _read(path: Place) -> Mapping[str, Any] | None:
    return read_sealed(path, records="shards")


def _compact(shards: Sequence[Mapping[str, Any]]) -> Records[dict[str, Any]]:
    return shards if isinstance(shards, Records) else Records.of(shards, dict)


def _plan(stored: Mapping[str, Any], kind: str, path: Place) -> Plan:
    try:
        check_kind(stored, kind, path)
        known = {field.name: stored[field.name] for field in dataclasses.fields(Plan)}
        own = {
            "schema": schema_of(stored["schema"]),
            "shards": _compact(stored["shards"]),
            "formats": tuple(stored["formats"]),
        }
        return Plan(**{**known, **own})
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged ({type(error).__name__}). Use another path.") from None


def _check_fingerprint(stored: Any, wanted: Any, path: Place) -> None:
    found = list(differences(stored, wanted))
    if not found:
        return

    def short(value: Any) -> str:
        return ABSENT if value == ABSENT else shown(json.dumps(value, ensure_ascii=False))

    lines = [f"  {shown(name)}: {short(old)} there, {short(new)} now" for name, old, new in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        lines.append(f"  and {len(found) - _MOST_NAMED} more")
    raise FingerprintError(
        f"{path} was begun with other settings, whose results must not be mixed with these:\n"
        + "\n".join(lines)
        + "\nUse another output path, or go back to the settings there."
    )


def _manifest_of_parts(run: Run, extra: Mapping[str, Any]) -> Manifest:
    sums = _Sums()
    files = Records.of(map(sums.add, _checked_parts(run)), File)
    return run.manifest(
        num_rows=sum(sums.outcomes.values()),
        num_kept=sums.outcomes["kept"],
        num_dropped=sums.outcomes["dropped"],
        drops={stage: dict(sorted(counts.items())) for stage, counts in sorted(sums.drops.items())},
        num_tokens=dict(sorted(sums.num_tokens.items())),
        id_digest=sums.id_digest,
        files=files,
        extra=extra,
    )


class _Sums:
    """What a manifest says of all parts together."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.drops: dict[str, Counter[str]] = {}
        self.num_tokens: Counter[str] = Counter()
        self.id_digest = add_id_digests([])

    def add(self, part: PartSummary) -> dict[str, Any]:
        """Count a part; returns the fields of its file."""
        self.outcomes.update(kept=part.num_kept, dropped=part.num_dropped)
        self.num_tokens.update(part.num_tokens)
        for stage, reasons in part.drops.items():
            self.drops.setdefault(stage, Counter()).update(reasons)
        self.id_digest = add_id_digests([self.id_digest, part.id_digest])
        file = File(
            path=part_path(part.index),
            num_rows=part.num_rows,
            num_kept=part.num_kept,
            size=part.size,
            footer_digest=part.footer_digest,
        )
        return dataclasses.asdict(file)


def _checked_parts(run: Run) -> Iterator[PartSummary]:
    """The summaries of all parts. After the last, it raises if rows do not add up."""
    sizes = part_sizes(run.place, len(run.plan.shards))
    missing = [part_path(int(i)) for i in np.flatnonzero(sizes < 0)]
    if missing:
        raise IntegrityError(
            f"{run.place}: parts are missing: {listed(missing, show=str)}. Run the same command again."
        )
    wrong = []
    for part, shard in zip(_summaries(run, sizes), run.plan.shards, strict=True):
        if part.num_rows != shard.get("num_rows", part.num_rows) or part.num_rows != part.num_kept + part.num_dropped:
            wrong.append(
                f"{part_path(part.index)} ({part.num_rows} rows of {shard.get('num_rows', 'some')}, "
                f"{part.num_kept} kept, {part.num_dropped} dropped)"
            )
        yield part
    if wrong:
        raise IntegrityError(
            f"{run.place}: the rows of parts do not add up: {listed(wrong, show=str)}. Use another path."
        )


def _summaries(run: Run, sizes: NDArray[np.int64]) -> Iterator[PartSummary]:
    for first in range(0, len(sizes), _WAVE_PARTS):
        indices = range(first, min(first + _WAVE_PARTS, len(sizes)))
        specs = run.plan.part_specs(indices)

        def summary(index: int, specs: Mapping[int, PartSpec] = specs) -> PartSummary:
            return read_part_summary(run.place, specs[index], int(sizes[index]))

        yield from in_order(summary, indices, num_threads=16)
