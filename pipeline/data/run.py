"""One run of anything that writes: claim the place, see what is done, create what is not, publish the manifest last.

`run.json`, put if absent, is the first object. It holds the fingerprint (everything that can move a number) and the
plan. A second run with the same fingerprint continues the stored plan, even if its own plan differs; another
fingerprint is refused, naming the fields. So results of different fingerprints are never mixed, and a run may be
started any number of times. `_SUCCESS.json`, put if absent, is the last object.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline import __version__
from pipeline.data.commit import clear_leftovers, create
from pipeline.data.manifest import MANIFEST_FILE, File, Manifest, check_kind, find_manifest, schema_json, schema_of
from pipeline.data.parts import PartSpec, PartSummary, add_id_digests, part_path, part_sizes, read_part_summary
from pipeline.data.place import Place, in_order
from pipeline.data.sealed import ABSENT, as_json, differences, fingerprint_digest, read_sealed, sealed
from pipeline.errors import FingerprintError, IntegrityError, TemporaryError
from pipeline.shown import listed, shown

RUN_FILE: Final = "run.json"
MINOR_VERSION: Final = ".".join(__version__.split(".")[:2])
"""Versions of one minor number give the same rows, so a run may be resumed with either."""
_MOST_NAMED: Final = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run makes, and of which shards; shard i becomes part i, or file i of each format."""

    kind: str
    fingerprint: Mapping[str, Any]
    """JSON values of everything that can move a number."""
    config: Mapping[str, Any]
    """The resolved config, for people; nothing is read back from it."""
    schema: pa.Schema = dataclasses.field(default_factory=lambda: pa.schema([]))
    shards: tuple[Mapping[str, Any], ...] = ()
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
        wanted = as_json({**fields, "schema": schema_json(plan.schema)})
        stored = read_sealed(path)
        if stored is None:
            stored = wanted if create(path, sealed(wanted)) else read_sealed(path)
        if stored is None:
            raise TemporaryError(f"{path} went away while it was read. Run the same command again.")
        joined = _plan(stored, plan.kind, path)
        _check_fingerprint(joined.fingerprint, wanted["fingerprint"], path)
        clear_leftovers(place)
        return cls(place, joined)

    def pending(self) -> list[int]:
        """Indices of the shards that have no part yet; other objects in the folder are ignored."""
        return sorted({*range(len(self.plan.shards))} - part_sizes(self.place).keys())

    def finish(self, extra: Mapping[str, Any], check: Callable[[Manifest], None] | None = None) -> Manifest:
        """Check every part against the plan and publish the manifest; one that is there is checked and returned.

        check: raises if the dataset must not be published.

        Raises:
            IntegrityError: parts are missing, damaged or short, or differ from the manifest that is there.
        """
        return self.publish(_manifest_of_parts(self, _checked_parts(self), extra), check)

    def manifest(self, **facts: Any) -> Manifest:
        """A manifest of this run with these facts."""
        about = ("kind", "version", "config", "fingerprint", "source_format", "schema")
        return Manifest(**{name: getattr(self.plan, name) for name in about}, **facts)

    def publish(self, manifest: Manifest, check: Callable[[Manifest], None] | None = None) -> Manifest:
        """Create the manifest, or compare it with the one that is there, which is returned. Raises as `finish`."""
        path = self.place / MANIFEST_FILE
        if read_sealed(path) is None:
            if check is not None:
                check(manifest)
            if create(path, sealed(manifest.to_json())):
                return manifest
        stored = find_manifest(self.place, self.plan.kind)
        assert stored is not None  # noqa: S101
        there, ours = stored.to_json(), as_json(manifest.to_json())
        may_differ = ("version", "config", "extra", "beside")
        differing = [name for name in ours if name not in may_differ and there[name] != ours[name]]
        if differing:
            raise IntegrityError(
                f"{path} and the files beside it differ in {', '.join(differing)}: they were changed after the run was "
                "complete. Restore them, or use another path."
            )
        return stored


def find_plan(place: Place, kind: str) -> Plan | None:
    """The plan of the run of that kind at `place`; None if none was begun. Raises as `Run.claim`."""
    path = place / RUN_FILE
    stored = read_sealed(path)
    return None if stored is None else _plan(stored, kind, path)


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


def _plan(stored: Mapping[str, Any], kind: str, path: Place) -> Plan:
    try:
        check_kind(stored, kind, path)
        known = {field.name: stored[field.name] for field in dataclasses.fields(Plan)}
        own = {"schema": schema_of(stored["schema"]), **{name: tuple(stored[name]) for name in ("shards", "formats")}}
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


def _checked_parts(run: Run) -> list[PartSummary]:
    sizes = part_sizes(run.place)
    indices = range(len(run.plan.shards))
    missing = [part_path(i) for i in indices if i not in sizes]
    if missing:
        raise IntegrityError(
            f"{run.place}: parts are missing: {listed(missing, show=str)}. Run the same command again."
        )
    specs = run.plan.part_specs(indices)
    summaries = list(in_order(lambda i: read_part_summary(run.place, specs[i], sizes[i]), indices, num_threads=16))
    wrong = [
        f"{part_path(part.index)} ({part.num_rows} rows of {shard.get('num_rows', 'some')}, "
        f"{part.num_kept} kept, {part.num_dropped} dropped)"
        for part, shard in zip(summaries, run.plan.shards, strict=True)
        if part.num_rows != shard.get("num_rows", part.num_rows) or part.num_rows != part.num_kept + part.num_dropped
    ]
    if wrong:
        raise IntegrityError(
            f"{run.place}: the rows of parts do not add up: {listed(wrong, show=str)}. Use another path."
        )
    return summaries


def _manifest_of_parts(run: Run, parts: Sequence[PartSummary], extra: Mapping[str, Any]) -> Manifest:
    drops: dict[str, Counter[str]] = {}
    num_tokens: Counter[str] = Counter()
    for part in parts:
        num_tokens.update(part.num_tokens)
        for stage, reasons in part.drops.items():
            drops.setdefault(stage, Counter()).update(reasons)
    return run.manifest(
        num_rows=sum(part.num_rows for part in parts),
        num_kept=sum(part.num_kept for part in parts),
        num_dropped=sum(part.num_dropped for part in parts),
        drops={stage: dict(sorted(counts.items())) for stage, counts in sorted(drops.items())},
        num_tokens=dict(sorted(num_tokens.items())),
        id_digest=add_id_digests(part.id_digest for part in parts),
        files=tuple(
            File(
                path=part_path(part.index),
                num_rows=part.num_rows,
                num_kept=part.num_kept,
                size=part.size,
                footer_digest=part.footer_digest,
            )
            for part in parts
        ),
        extra=extra,
    )
