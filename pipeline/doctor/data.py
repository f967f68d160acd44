"""Checks of data: the source can be read, the stores take and keep objects, and the clock is right for them."""

import contextlib
import os
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from pipeline.config import Prompts, RewardConfig, Source, Storage, Table
from pipeline.data.commit import check_writable, create
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.doctor.check import Finding, bad, ok, warn
from pipeline.doctor.machine import LEAST_FREE
from pipeline.faults import storage_errors
from pipeline.shown import listed, shown_path
from pipeline.sources.inspect import inspect_source
from pipeline.sources.open import open_responses
from pipeline.sources.prompts import open_prompts

_PROBE_BYTES: Final = 8 * 2**20
_SAMPLE_ROWS: Final = 200
_MOST_SKEW_S: Final = 15 * 60.0  # S3 refuses signatures beyond it
_SOME_SKEW_S: Final = 60.0


def source(wanted: Source, storage: Storage, max_dropped: float) -> Finding:
    """Whether the source can be read, its format and split be told, and its first rows give pairs."""
    place = Place.of_source(wanted.path, storage)
    with storage_errors(str(place)):
        found = inspect_source(place.fs, place.root, wanted, sample_rows=_SAMPLE_ROWS)
    look = f"Look at it with: alignpot inspect {place}"
    if found.format is None or not found.num_pairs:
        return bad(f"{place}: no row gives a pair; {listed(found.problems, 3)}. {look}")
    split = "" if found.split is None else f"split {found.split}, "
    says = f"{place}: format {found.format}, {split}{found.num_rows:,} rows in {found.num_files:,} files"
    if found.share_dropped > max_dropped:
        return bad(f"{says}; {found.share_dropped:.0%} of the first {found.num_sampled} drop. {look}")
    return warn(f"{says}; {listed(found.problems, 3)}. {look}") if found.problems else ok(says)


def prompts(wanted: Prompts, storage: Storage) -> Finding:
    """The same for the prompts of self-play."""
    place = Place.of_source(wanted.path, storage)
    with storage_errors(str(place)):
        found = open_prompts(place.fs, place.root, wanted)
    return ok(f"{place}: format {found.format}, {len(found.files):,} files")


def responses(config: RewardConfig, storage: Storage) -> Finding:
    """The same for the responses that are to get rewards."""
    place = Place.of_source(config.source.path, storage)
    with storage_errors(str(place)):
        reader, files = open_responses(place.fs, place.root, config.source, rewards=config.reward_names)
    return ok(f"{place}: format {reader.format}, {len(files):,} files")


def readable(url: str, storage: Storage) -> Finding:
    """Whether a file that is only read is there."""
    place = Place.open(url, storage)
    place.check_readable()
    return ok(f"{place}: can be read")


def scored(url: str, storage: Storage) -> Finding:
    """Whether the dataset that a selection reads is complete."""
    place = Place.open(url, storage)
    manifest = Dataset.open(place).manifest
    return ok(f"{place}: complete, {manifest.num_kept:,} of {manifest.num_rows:,} rows kept")


def store(url: str, storage: Storage, least_free: int = LEAST_FREE) -> Finding:
    """Whether objects can be created below a place, and only once; how fast it is. Leaves nothing behind."""
    place = Place.open(url, storage)
    with _no_trace(place):
        check_writable(place)
        probe = place / f".alignpot-{uuid.uuid4().hex}"
        data = os.urandom(_PROBE_BYTES)
        try:
            written = _mb_per_s(lambda: create(probe, data))
            read = _mb_per_s(probe.read)
        finally:
            deleted = _delete(probe)
    says = f"{place}: put-if-absent holds; writes {written:,.0f} MB/s, reads {read:,.0f} MB/s"
    if not deleted:
        return warn(f"{says}; {probe} could not be deleted. Delete it by hand.")
    if place.is_local:
        free = shutil.disk_usage(_nearest(Path(place.root))).free
        says += f"; {free / 1e9:,.1f} GB free"
        if free < least_free:
            return bad(f"{says}. Free some, or use a larger disk.")
    return ok(says)


def table(target: Table, storage: Storage) -> Finding:
    """Whether the table, or what it will be created in, can be opened."""
    from pipeline.exports.tables.publish import open_table

    open_table(target, storage)
    return ok(f"{shown_path(target.url)}: can be opened")


def _mb_per_s(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return _PROBE_BYTES / 1e6 / max(1e-6, time.monotonic() - started)


def _delete(probe: Place) -> bool:
    try:
        probe.fs.rm_file(probe.root)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _no_trace(place: Place) -> Iterator[None]:
    """Remove the folders that the block makes on a local disk."""
    folder = Path(place.root)
    made = [each for each in (folder, *folder.parents) if place.is_local and not each.exists()]
    try:
        yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def _nearest(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


def clock(url: str, storage: Storage) -> Finding:
    """The time of this machine beside that of an S3 store."""
    endpoint = Place.open(url, storage).fs.s3.meta.endpoint_url
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - Place takes http and https only
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            date = answer.headers["Date"]
    except urllib.error.HTTPError as refusal:  # nobody may list buckets without credentials
        date = refusal.headers["Date"]
    except OSError as error:
        return warn(f"{endpoint} does not tell the time ({type(error).__name__}). See what its store says.")
    if not date:
        return warn(f"{endpoint} does not tell the time. See that the clock of this machine is set by NTP.")
    off = time.time() - parsedate_to_datetime(date).timestamp()
    says = f"{abs(off):,.0f} s {'ahead of' if off > 0 else 'behind'} {endpoint}"
    if abs(off) > _SOME_SKEW_S:
        tell = bad if abs(off) > _MOST_SKEW_S else warn
        return tell(f"{says}; S3 refuses requests beyond 900 s. Set the clock: timedatectl set-ntp true")
    return ok(says)
