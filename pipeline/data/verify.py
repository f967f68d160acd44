"""Checks a whole dataset: every file that its manifest names, every page, every row and every sum."""

from collections.abc import Callable
from functools import partial
from typing import Final

from pipeline.data.files import check_file
from pipeline.data.manifest import MANIFEST_FILE, find_manifest
from pipeline.data.parts import check_part
from pipeline.data.place import Place, in_order
from pipeline.data.run import RUN_FILE, find_plan
from pipeline.data.sealed import read_sealed
from pipeline.errors import IntegrityError, SourceError

_MOST_NAMED: Final = 10


def verify(place: Place) -> str:
    """Read everything that the manifest at `place` names; returns the result as a line.

    Raises:
        SourceError: there is no dataset, or it is not complete.
        IntegrityError: files are gone or damaged; up to ten are named.
    """
    run = read_sealed(place / RUN_FILE, records="shards")
    if run is None:
        raise SourceError(f"{place} holds no dataset of alignpot (no {RUN_FILE}). Correct the path.")
    checks = _checks(place, str(run.get("kind")))

    def problem(check: Callable[[], None]) -> str | None:
        try:
            check()
        except IntegrityError as error:
            return str(error)
        return None

    found = [text for text in in_order(problem, checks) if text is not None]
    if found:
        more = f"\n  and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        lines = "\n".join(f"  {text}" for text in found[:_MOST_NAMED])
        raise IntegrityError(f"{len(found)} of {len(checks)} files are not as they were written:\n{lines}{more}")
    return f"{place}: a complete dataset of kind {run['kind']}, {len(checks)} files, all as written"


def _checks(place: Place, kind: str) -> list[Callable[[], None]]:
    plan, manifest = find_plan(place, kind), find_manifest(place, kind)
    if manifest is None:
        raise SourceError(f"{place} is not complete. Run the command that began it again; it goes on.")
    in_parts = plan is not None and plan.shards and not plan.formats
    num_files = len(plan.shards) if plan is not None and in_parts else len(manifest.files)
    if plan is None or plan.fingerprint != manifest.fingerprint or num_files != len(manifest.files):
        raise IntegrityError(f"{place}: {RUN_FILE} and {MANIFEST_FILE} are of different runs.")
    if not in_parts:
        return [partial(check_file, place, file) for file in (*manifest.files, *manifest.beside)]
    specs = plan.part_specs(range(num_files))
    return [
        partial(check_part, place, specs[i], file.size, file.footer_digest) for i, file in enumerate(manifest.files)
    ]
