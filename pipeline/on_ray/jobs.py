"""Jobs that were submitted to a Ray cluster: how they stand, what they print, and how to stop them.

A job is named by its config, as `submit` makes its id from it, or by its id.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.config import NO_CREDENTIALS, Storage, carries_credentials, load_any
from pipeline.data.place import Place
from pipeline.data.underway import datasets_below
from pipeline.errors import AlignpotError, ConfigError, TemporaryError
from pipeline.on_ray.shipment import config_digest, is_of
from pipeline.shown import quoted, shown

T = TypeVar("T")
Echo = Callable[[str], None]

_COLOURS: Final = re.compile("\x1b\\[[0-9;]*m")
_POLL_S: Final = 1.0
_PATIENCE_S: Final = 60.0
_QUICK_ATTEMPTS: Final = 2


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the Ray dashboard at a URL.

    Raises:
        ConfigError: no URL of a dashboard, or Ray there wants another token or version.
        TemporaryError: no dashboard answers.
    """
    if not address:
        raise ConfigError("--address is missing: give the URL of the Ray dashboard, such as http://head:8265.")
    if carries_credentials(address):
        raise ConfigError(f"--address {NO_CREDENTIALS}; a token goes into RAY_AUTH_TOKEN.")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {quoted(address)} is no dashboard; wanted its URL, such as http://head:8265.")
    try:
        return JobSubmissionClient(address)
    except OSError as error:
        raise TemporaryError(f"no Ray dashboard answers at {address}: {error}") from None
    except AuthenticationError:
        raise ConfigError(
            f"Ray at {address} wants a token, and has got none or a wrong one. "
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        ) from None
    except RuntimeError as error:
        raise ConfigError(f"Ray at {address} refused the client: {str(error).splitlines()[0]}") from None


def patiently(request: Callable[[], T], failure: str) -> T:
    """Answer to `request`. A dashboard that has just started drops requests, so failed ones are repeated.

    After `_PATIENCE_S` it raises a TemporaryError with `failure` and the last reason.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return request()
        except (OSError, RuntimeError) as error:  # lost connections and refusals
            if time.monotonic() > deadline:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise TemporaryError(f"{failure}: {reason}") from None
        time.sleep(_POLL_S)


def submitted_jobs(client: JobSubmissionClient) -> dict[str, JobDetails]:
    """The jobs that were submitted to the cluster, by id."""
    jobs = patiently(client.list_jobs, "the cluster does not tell its jobs")
    return {job.submission_id: job for job in jobs if job.submission_id is not None}


def show_status(job: str, overrides: Sequence[str], *, address: str | None, echo: Echo) -> int:
    """Print state, times and message of a job, and how far its datasets are. Returns 1 if it failed or was stopped.

    Raises an AlignpotError as `connect`, and a ConfigError if there is no such job.
    """
    wanted = _ids_of(job, overrides)
    details = _found(connect(address), job, wanted)
    echo(f"job {details.submission_id}: {details.status.value}")
    for line in [*_times(details), *_message(details), *_progress(details)]:
        echo(f"  {line}")
    return 1 if details.status in (JobStatus.FAILED, JobStatus.STOPPED) else 0


def show_logs(job: str, overrides: Sequence[str], *, address: str | None, follow: bool, echo: Echo) -> int:
    """Print what a job has printed. follow: go on until it ends, and return its exit code. Raises as `show_status`."""
    wanted = _ids_of(job, overrides)
    client = connect(address)
    submission_id = str(_found(client, job, wanted).submission_id)
    if follow:
        return follow_job(client, submission_id, echo)
    logs = patiently(partial(client.get_job_logs, submission_id), f"the cluster has no log of {submission_id}")
    echo(_plain(logs))
    return 0


def stop_job(job: str, overrides: Sequence[str], *, address: str | None, echo: Echo) -> int:
    """Stop a job and wait until it has ended; 0 also if it had ended before. Raises as `show_status`."""
    wanted = _ids_of(job, overrides)
    client = connect(address)
    details = _found(client, job, wanted)
    submission_id = str(details.submission_id)
    if details.status.is_terminal():
        echo(f"job {submission_id} has ended already: {details.status.value}")
        return 0
    patiently(partial(client.stop_job, submission_id), "the cluster stops no job")
    deadline = time.monotonic() + _PATIENCE_S
    while not details.status.is_terminal():
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"job {submission_id} has not ended after {_PATIENCE_S:.0f} s. Look at it again later."
            )
        time.sleep(_POLL_S)
        details = patiently(partial(client.get_job_info, submission_id), f"lost the dashboard; {submission_id} stops")
    echo(f"job {submission_id}: {details.status.value}. Submit it again, and it goes on.")
    return 0


def follow_job(client: JobSubmissionClient, submission_id: str, echo: Echo) -> int:
    """Print what a job prints until it ends; returns its exit code."""
    lost = f"lost the dashboard; the job {submission_id} goes on, submit again to follow it"
    printed = 0
    while True:
        details = patiently(partial(client.get_job_info, submission_id), lost)
        logs = patiently(partial(client.get_job_logs, submission_id), lost)
        if len(logs) > printed:
            echo(_plain(logs[printed:]))
            printed = len(logs)
        if details.status.is_terminal():
            break
        time.sleep(_POLL_S)
    echo(f"job {submission_id}: {details.status.value}")
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return int(details.driver_exit_code or 1)


def _ids_of(job: str, overrides: Sequence[str]) -> Callable[[str], bool]:
    """Tells whether an id is meant by `job`, a config or an id. Raises a ConfigError if the config is wrong."""
    if Path(job).suffix in (".yaml", ".yml") or Path(job).is_file():
        digest = config_digest(load_any(job, overrides))
        return lambda submission_id: is_of(submission_id, digest)
    if overrides:
        raise ConfigError(f"--set changes a config, and {quoted(job)} is none. Leave it out, or give the config.")
    return lambda submission_id: submission_id == job


def _found(client: JobSubmissionClient, job: str, wanted: Callable[[str], bool]) -> JobDetails:
    """The job that is meant: of several tries the one that still runs, else the last."""
    tries = [details for submission_id, details in submitted_jobs(client).items() if wanted(submission_id)]
    if not tries:
        raise ConfigError(
            f"the cluster knows no job of {quoted(job)}. Give its id, or the config and the --set that it was "
            "submitted with."
        )
    return max(tries, key=lambda details: (not details.status.is_terminal(), details.start_time or 0))


def _times(details: JobDetails) -> Iterator[str]:
    for name, milliseconds in (("started", details.start_time), ("ended", details.end_time)):
        if milliseconds:
            yield f"{name:<9}{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _message(details: JobDetails) -> Iterator[str]:
    """The first line of Ray's message: those after it repeat the log."""
    if details.message:
        yield f"{'message':<9}{shown(details.message.splitlines()[0], 300)}"
    if details.driver_exit_code is not None:
        yield f"{'exit code':<9} {details.driver_exit_code}"


def _progress(details: JobDetails) -> Iterator[str]:
    """How far the datasets of the job are, where its store can be reached from here."""
    about = details.metadata or {}
    storage = Storage.model_validate_json(about.get("alignpot_storage", "{}"))
    storage = storage.model_copy(update={"max_attempts": _QUICK_ATTEMPTS})
    for url in json.loads(about.get("alignpot_places", "[]")):
        try:
            states = [*map(str, datasets_below(Place.open(url, storage)))]
        except AlignpotError as error:
            yield f"{'data':<9}not known: {error}"
        else:
            yield from (f"{'data':<9}{state}" for state in states or [f"{url}: nothing yet"])


def _plain(log: str) -> str:
    return _COLOURS.sub("", log).replace("\r", "\n").rstrip("\n")
