"""Submit a command and its config to a Ray cluster through Ray's Job SDK.

The cluster's image provides the dependencies; the job ships the `pipeline` package of this installation and the
resolved config, so that the cluster runs the code it was submitted with. Weights and data are never shipped.
"""

import hashlib
import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import pipeline
from pipeline.config import (
    NO_CREDENTIALS,
    Config,
    SelfPlayConfig,
    TorchModel,
    carries_credentials,
    load_config,
    load_self_play,
)
from pipeline.errors import ConfigError, TemporaryError
from pipeline.scratch import scratch_folder
from pipeline.shown import quoted

T = TypeVar("T")

JOBS: Final = {
    "run": "run",
    "score": "score",
    "select": "select",
    "self-play": "self-play",
    "score_pairs": "score",
    "select_pairs": "select",
    "self_play": "self-play",
}
"""Command of each job; the names of the scripts in jobs/ are accepted too."""

_COLOURS: Final = re.compile("\x1b\\[[0-9;]*m")
_POLL_S: Final = 1.0
_PATIENCE_S: Final = 60.0


def submit_job(
    job: str, config: Path, overrides: Sequence[str], *, address: str, wait: bool, echo: Callable[[str], None]
) -> int:
    """Submit `job` with a config and return the exit code: the job's own if we waited for it, else 0.

    The submission id is made of the job and the resolved config. While a job still runs, submitting the same again
    follows it instead of starting another.

    Raises:
        ConfigError: an unknown job, or a config that does not parse; nothing was sent.
        TemporaryError: no Ray dashboard answers at `address`, or it has stopped answering.
    """
    if job not in JOBS:
        raise ConfigError(f"unknown job {job!r}; wanted one of {', '.join(JOBS)}")
    parsed = (load_self_play if JOBS[job] == "self-play" else load_config)(config, overrides)
    _check_paths(parsed)
    resolved = parsed.model_dump(mode="json")
    client = _client(address)
    name = f"alignpot-{JOBS[job]}-{hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]}"
    jobs = {str(j.submission_id): j for j in _patiently(client.list_jobs, "the cluster does not tell its jobs")}
    tries = {each: j for each, j in jobs.items() if each == name or each.startswith(f"{name}-")}
    submission_id = next((each for each, j in tries.items() if not j.status.is_terminal()), None)
    if submission_id is not None:
        echo(f"job {submission_id} is running already")
    else:
        submission_id = name if not tries else f"{name}-{len(tries) + 1}"
        _submit(client, JOBS[job], resolved, submission_id)
        echo(f"submitted {submission_id} to {address}")
    return _follow(client, submission_id, echo) if wait else 0


def _check_paths(config: Config | SelfPlayConfig) -> None:
    """Refuse relative paths: they mean something else on the cluster's head node, and nothing on its workers."""
    places, models = _places(config)
    relative = [name for name, path in places.items() if "://" not in path and not Path(path).is_absolute()]
    for role, model in models.items():
        for key, name in ((f"{role}.model", model.model), (f"{role}.adapter", model.adapter)):
            if name and not Path(name).is_absolute() and (name.startswith((".", "~")) or Path(name).is_dir()):
                relative.append(key)
    if relative:
        raise ConfigError(
            f"{', '.join(relative)}: a relative path cannot be submitted. Give an object-store URL such as "
            "s3://bucket/prefix, or the absolute path of a folder that every node mounts."
        )


def _places(config: Config | SelfPlayConfig) -> tuple[dict[str, str], dict[str, TorchModel]]:
    """Paths and models that a config names, by key."""
    if isinstance(config, Config):
        places = {"scored": config.scored}
        for key, source in config.all_sources().items():
            places[f"{key}.path"] = source.path
            places |= {f"{key}.decontaminate[{i}]": path for i, path in enumerate(source.decontaminate)}
        if config.output is not None:
            places["output.path"] = config.output.path
        return places, config.torch_models()
    places = {"path": config.path, "prompts.path": config.prompts.path}
    places |= {f"prompts.decontaminate[{i}]": path for i, path in enumerate(config.prompts.decontaminate)}
    if config.train is not None and config.train.policies is not None:
        places["train.policies"] = config.train.policies
    models = {"policy": config.policy, "reference": config.reference, "reward": config.reward}
    return places, {role: model for role, model in models.items() if model is not None}


def _client(address: str) -> JobSubmissionClient:
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


def _submit(client: JobSubmissionClient, command: str, resolved: dict[str, object], submission_id: str) -> None:
    with scratch_folder("job") as work:
        shutil.copytree(Path(pipeline.__file__).parent, work / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        (work / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")

        def submit() -> None:
            # The request may have succeeded although its reply was lost, and an id can be used only once.
            if any(job.submission_id == submission_id for job in client.list_jobs()):
                return
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", "pipeline.cli", command, "config.yaml"]),
                runtime_env={"working_dir": str(work)},
                submission_id=submission_id,
                metadata={"alignpot_command": command},
            )

        _patiently(submit, "the cluster takes no job")


def _patiently(request: Callable[[], T], failure: str) -> T:
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


def _follow(client: JobSubmissionClient, submission_id: str, echo: Callable[[str], None]) -> int:
    lost = f"lost the dashboard; the job {submission_id} goes on, submit again to follow it"
    printed = 0
    while True:
        details = _patiently(partial(client.get_job_info, submission_id), lost)
        logs = _patiently(partial(client.get_job_logs, submission_id), lost)
        if len(logs) > printed:
            echo(_COLOURS.sub("", logs[printed:]).replace("\r", "\n").rstrip("\n"))
            printed = len(logs)
        if details.status.is_terminal():
            break
        time.sleep(_POLL_S)
    echo(f"job {submission_id}: {details.status.value}")
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return int(details.driver_exit_code or 1)
