"""Closes a run and opens a closed one: `_SUCCESS.json`, put if absent, is its last object.

It is written only after every shard of the plan is found committed and rows = scored + dropped holds for each and in
total, and it lists the parts; readers read what it lists and nothing else.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import fsspec
import pyarrow as pa

from pipeline.errors import IntegrityError, SourceError
from pipeline.storage.commit import create
from pipeline.storage.filesystem import display, in_order
from pipeline.storage.parts import (
    PartSummary,
    add_id_digests,
    committed_parts,
    part_path,
    part_sizes,
    read_part_summary,
)
from pipeline.storage.runs import SCORED_KIND, RunPlan, load_plan, read_sealed, schema_json, schema_of, sealed

MANIFEST_FILE: Final = "_SUCCESS.json"
_MOST_NAMED: Final = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """A part as the manifest names it; see PartSummary."""

    path: str
    """Relative to the dataset."""
    num_rows: int
    num_scored: int
    size: int
    footer_digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A complete scored dataset: what it was made with, what came of every row, and where the rows are."""

    version: str
    config: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    source_format: str
    num_rows: int
    num_scored: int
    num_dropped: int
    drops: Mapping[str, Mapping[str, int]]
    """Dropped rows by stage, then reason."""
    num_tokens: Mapping[str, int]
    id_digest: str
    files: tuple[PartFile, ...]
    schema: pa.Schema
    extra: Mapping[str, Any]
    """What the run added: model digests, timings and the like."""

    @property
    def fraction_dropped(self) -> float:
        """Dropped rows as a share of all rows; 0 where there are none."""
        return self.num_dropped / self.num_rows if self.num_rows else 0.0


def finish_run(
    fs: fsspec.AbstractFileSystem,
    root: str,
    plan: RunPlan,
    extra: Mapping[str, Any],
    check: Callable[[Manifest], None] | None = None,
) -> Manifest:
    """Check every part against `plan` and publish the manifest; one that is there already is checked and returned.

    check: raises if the dataset must not be published.

    Raises:
        IntegrityError: parts are missing, damaged or short, or differ from the manifest that is there.
    """
    manifest = _manifest(plan, _checked_parts(fs, root, plan), extra)
    path = f"{root}/{MANIFEST_FILE}"
    if read_sealed(fs, path) is None:
        if check is not None:
            check(manifest)
        if create(fs, path, sealed(_as_json(manifest))):
            return manifest
    stored = load_manifest(fs, root, plan.kind)
    own = ("version", "config", "extra")
    differing = [
        field.name
        for field in dataclasses.fields(Manifest)
        if field.name not in own and getattr(stored, field.name) != getattr(manifest, field.name)
    ]
    if differing:
        raise IntegrityError(
            f"{display(fs, path)} and the parts beside it differ in {', '.join(differing)}: the parts were changed "
            "after the run was complete. Restore them, or score again under another path."
        )
    return stored


def is_complete(fs: fsspec.AbstractFileSystem, root: str) -> bool:
    """Whether there is a manifest under `root`, and so nothing left to write."""
    return read_sealed(fs, f"{root}/{MANIFEST_FILE}") is not None


def load_manifest(fs: fsspec.AbstractFileSystem, root: str, kind: str = SCORED_KIND) -> Manifest:
    """The manifest of the dataset of that kind under `root`.

    Raises:
        SourceError: there is none, because nothing was begun there or because the run is not complete.
        IntegrityError: it is damaged.
    """
    path = f"{root}/{MANIFEST_FILE}"
    where = display(fs, path)
    value = read_sealed(fs, path)
    if value is None:
        raise SourceError(_why_missing(fs, root, kind))
    try:
        files = tuple(PartFile(**each) for each in value.pop("files"))
        schema = schema_of(value.pop("schema"))
        return Manifest(**value, files=files, schema=schema)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{where} is damaged ({type(error).__name__}). Restore it, or score again.") from None


def _why_missing(fs: fsspec.AbstractFileSystem, root: str, kind: str) -> str:
    where = display(fs, root)
    plan = load_plan(fs, root, kind)
    if kind != SCORED_KIND:
        state = "no" if plan is None else "an unfinished"
        return f"{where} holds {state} dataset of kind {kind}. Run `alignpot self-play` with its config."
    if plan is None:
        return f"{where} holds no scored dataset. Run `alignpot score` first, or correct `scored`."
    num_done = len(committed_parts(fs, root, plan))
    return (
        f"{where} holds an unfinished scored dataset ({num_done} of {len(plan.shards)} parts). "
        "Run `alignpot score` with its config; it goes on."
    )


def _checked_parts(fs: fsspec.AbstractFileSystem, root: str, plan: RunPlan) -> list[PartSummary]:
    where = display(fs, root)
    sizes = part_sizes(fs, root)
    indices = range(len(plan.shards))
    _refuse(
        [part_path(i) for i in indices if i not in sizes], f"{where}: parts are missing", "Run `alignpot score` again"
    )
    specs = plan.part_specs(indices)
    summaries = list(in_order(lambda i: read_part_summary(fs, root, specs[i], sizes[i]), indices, num_threads=16))
    _refuse(
        [
            f"{part_path(part.index)} ({part.num_rows} rows of {shard.get('num_rows', 'some')}, "
            f"{part.num_scored} scored, {part.num_dropped} dropped)"
            for part, shard in zip(summaries, plan.shards, strict=True)
            if part.num_rows != shard.get("num_rows", part.num_rows)
            or part.num_rows != part.num_scored + part.num_dropped
        ],
        f"{where}: the rows of parts do not add up",
        "Score again under another path",
    )
    return summaries


def _refuse(found: Sequence[str], problem: str, remedy: str) -> None:
    if found:
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise IntegrityError(f"{problem}: {', '.join(found[:_MOST_NAMED])}{more}. {remedy}.")


def _manifest(plan: RunPlan, parts: Sequence[PartSummary], extra: Mapping[str, Any]) -> Manifest:
    drops: dict[str, Counter[str]] = {}
    num_tokens: Counter[str] = Counter()
    for part in parts:
        num_tokens.update(part.num_tokens)
        for stage, reasons in part.drops.items():
            drops.setdefault(stage, Counter()).update(reasons)
    manifest = Manifest(
        version=plan.version,
        config=plan.config,
        fingerprint=plan.fingerprint,
        source_format=plan.source_format,
        num_rows=sum(part.num_rows for part in parts),
        num_scored=sum(part.num_scored for part in parts),
        num_dropped=sum(part.num_dropped for part in parts),
        drops={stage: dict(sorted(counts.items())) for stage, counts in sorted(drops.items())},
        num_tokens=dict(sorted(num_tokens.items())),
        id_digest=add_id_digests(part.id_digest for part in parts),
        files=tuple(
            PartFile(
                path=part_path(part.index),
                num_rows=part.num_rows,
                num_scored=part.num_scored,
                size=part.size,
                footer_digest=part.footer_digest,
            )
            for part in parts
        ),
        schema=plan.schema,
        extra=extra,
    )
    num_planned = sum(shard.get("num_rows", part.num_rows) for shard, part in zip(plan.shards, parts, strict=True))
    if not num_planned == manifest.num_rows == manifest.num_scored + manifest.num_dropped:
        raise IntegrityError(
            f"{num_planned} rows planned, {manifest.num_rows} in parts, {manifest.num_scored} scored and "
            f"{manifest.num_dropped} dropped: the sums must agree. Score again under another path."
        )
    return manifest


def _as_json(manifest: Manifest) -> dict[str, Any]:
    own = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest)}
    files = [dataclasses.asdict(each) for each in manifest.files]
    return {**own, "schema": schema_json(manifest.schema), "files": files}
