"""Checks a dataset of ours whole: every file that its manifest names, every page, every row and every sum."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import fsspec

from pipeline.errors import IntegrityError, SourceError
from pipeline.storage.filesystem import display, in_order
from pipeline.storage.manifest import MANIFEST_FILE, load_manifest
from pipeline.storage.parts import check_part
from pipeline.storage.runs import RUN_FILE, load_plan, read_sealed
from pipeline.storage.subset_parts import check_file

_OF_FILES: Final = frozenset({"subset", "export"})
_MOST_NAMED: Final = 10


def verify(fs: fsspec.AbstractFileSystem, root: str) -> str:
    """Read everything under `root` that a manifest of ours names; what was found, as a line.

    Raises:
        SourceError: there is no dataset, or it is not complete.
        IntegrityError: files are gone or damaged; up to ten are named.
    """
    run = read_sealed(fs, f"{root}/{RUN_FILE}")
    if run is None:
        raise SourceError(f"{display(fs, root)} holds no dataset of alignpot (no {RUN_FILE}). Correct the path.")
    checks = _checks_of_files(fs, root, run) if run["kind"] in _OF_FILES else _checks_of_parts(fs, root, run["kind"])
    found = [problem for problem in in_order(_problem, checks) if problem is not None]
    if found:
        more = f"\n  and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        lines = "\n".join(f"  {problem}" for problem in found[:_MOST_NAMED])
        raise IntegrityError(f"{len(found)} of {len(checks)} files are not as they were written:\n{lines}{more}")
    return f"{display(fs, root)}: a complete dataset of kind {run['kind']}, {len(checks)} files, all as written"


def _problem(check: Callable[[], None]) -> str | None:
    try:
        check()
    except IntegrityError as error:
        return str(error)
    return None


def _checks_of_files(fs: fsspec.AbstractFileSystem, root: str, run: Mapping[str, Any]) -> list[Callable[[], None]]:
    manifest = read_sealed(fs, f"{root}/{MANIFEST_FILE}")
    if manifest is None:
        raise SourceError(f"{display(fs, root)} is not complete. Run the command that began it again; it goes on.")
    if manifest["fingerprint"] != run["fingerprint"]:
        raise IntegrityError(f"{display(fs, root)}: {RUN_FILE} and {MANIFEST_FILE} are of different runs.")
    return [partial(check_file, fs, root, record) for record in (*manifest["files"], *manifest["beside"])]


def _checks_of_parts(fs: fsspec.AbstractFileSystem, root: str, kind: str) -> list[Callable[[], None]]:
    manifest, plan = load_manifest(fs, root, kind), load_plan(fs, root, kind)
    if plan is None or plan.fingerprint != manifest.fingerprint or len(plan.shards) != len(manifest.files):
        raise IntegrityError(f"{display(fs, root)}: {RUN_FILE} and {MANIFEST_FILE} are of different runs.")
    specs = plan.part_specs(range(len(manifest.files)))
    return [
        partial(check_part, fs, root, specs[index], file.size, file.footer_digest)
        for index, file in enumerate(manifest.files)
    ]
