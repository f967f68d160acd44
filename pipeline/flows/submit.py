"""Submit a command and its config to a Ray cluster through Ray's Job SDK.

The cluster's image provides the dependencies; the job ships the `pipeline` package of this installation and the
resolved config, so that the cluster runs the code it was submitted with. Weights and data are never shipped.
"""

import hashlib
import json
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import pipeline
from pipeline.config import Config, TorchModel
from pipeline.config_file import load_config, load_self_play
from pipeline.config_self_play import SelfPlayConfig
from pipeline.errors import ConfigError, TemporaryError

JOBS: Final = {
    "run": "run",
    "score": "score",
    "select": "select",
    "self-play": "self-play",
    "score_pairs": "score",
    "select_pairs": "select",
    "self_play": "self-play",
}
"""Command of each job; the names of the scripts in jobs/ will do too."""

_POLL_S: Final = 1.0
_START_S: Final = 60.0


def submit_job(
    job: str, config: Path, overrides: Sequence[str], *, address: str, wait: bool, echo: Callable[[str], None]
) -> int:
    """Submit `job` with a config and return the exit code: the job's own if we waited for it, else 0.

    The submission id is made of the job and the resolved config, so that submitting twice while the first still runs
    follows that one instead of starting another.

    Raises:
        ConfigError: an unknown job, or a config that does not parse: found before anything is sent.
        TemporaryError: no Ray dashboard answers at `address`.
    """
    if job not in JOBS:
        raise ConfigError(f"unknown job {job!r}; wanted one of {', '.join(JOBS)}")
    parsed = (load_self_play if JOBS[job] == "self-play" else load_config)(config, overrides)
    _check_paths(parsed)
    resolved = parsed.model_dump(mode="json")
    client = _client(address)
    name = f"alignpot-{JOBS[job]}-{_digest(resolved)}"
    submission_id = _running(client, name)
    if submission_id is not None:
        echo(f"job {submission_id} is running already")
    else:
        submission_id = _submit(client, JOBS[job], resolved, name)
        echo(f"submitted {submission_id} to {address}")
    return _follow(client, submission_id, echo) if wait else 0


def _check_paths(config: Config | SelfPlayConfig) -> None:
    """Relative paths mean something else on the cluster's head node, and nothing on its workers."""
    places, models = _places(config)
    relative = [name for name, path in places.items() if "://" not in path and not Path(path).is_absolute()]
    for role, model in models.items():
        names = {f"{role}.model": model.model, f"{role}.adapter": model.adapter}
        relative += [key for key, name in names.items() if name and _is_relative_folder(name)]
    if relative:
        raise ConfigError(
            f"{', '.join(relative)}: a relative path cannot be submitted. Give an object-store URL such as "
            "s3://bucket/prefix, or the absolute path of a folder that every node mounts."
        )


def _places(config: Config | SelfPlayConfig) -> tuple[dict[str, str], dict[str, TorchModel]]:
    """Paths and models that a config names, by key."""
    if isinstance(config, Config):
        sections = {"source.path": config.source, "output.path": config.output}
        places = {"scored": config.scored, **{name: s.path for name, s in sections.items() if s is not None}}
        return places, config.torch_models()
    places = {"path": config.path, "prompts.path": config.prompts.path}
    places |= {f"prompts.decontaminate[{i}]": path for i, path in enumerate(config.prompts.decontaminate)}
    if config.train is not None and config.train.policies is not None:
        places["train.policies"] = config.train.policies
    models = {"policy": config.policy, "reference": config.reference, "reward": config.reward}
    return places, {role: model for role, model in models.items() if model is not None}


def _is_relative_folder(name: str) -> bool:
    return not Path(name).is_absolute() and (name.startswith((".", "~")) or Path(name).is_dir())


def _client(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address!r} is no dashboard; wanted its URL, such as http://head:8265.")
    try:
        return JobSubmissionClient(address)
    except ConnectionError as error:
        raise TemporaryError(f"no Ray dashboard answers at {address}: {error}") from None
    except AuthenticationError:
        raise ConfigError(
            f"Ray at {address} wants a token, and has got none or a wrong one. "
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        ) from None
    except RuntimeError as error:
        raise ConfigError(f"Ray at {address} refused the client: {str(error).splitlines()[0]}") from None


def _running(client: JobSubmissionClient, name: str) -> str | None:
    """The try of this job that has not ended, if there is one."""
    live = [str(job.submission_id) for job in client.list_jobs() if not job.status.is_terminal()]
    return next((each for each in live if _is_try(each, name)), None)


def _is_try(submission_id: str, name: str) -> bool:
    return submission_id == name or submission_id.startswith(f"{name}-")


def _submit(client: JobSubmissionClient, command: str, resolved: dict[str, object], name: str) -> str:
    earlier = sum(_is_try(str(job.submission_id), name) for job in client.list_jobs())
    with tempfile.TemporaryDirectory(prefix="alignpot-job-") as folder:
        work = Path(folder)
        shutil.copytree(Path(pipeline.__file__).parent, work / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        (work / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
        return _accepted(
            partial(
                client.submit_job,
                entrypoint=shlex.join(["python", "-m", "pipeline.cli", command, "config.yaml"]),
                runtime_env={"working_dir": str(work)},
                submission_id=name if not earlier else f"{name}-{earlier + 1}",
                metadata={"alignpot_command": command},
            )
        )


def _accepted(submit: Callable[[], str]) -> str:
    """The id of the submitted job; a cluster that has only just started is given time to take it."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            return submit()
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                raise TemporaryError(f"the cluster takes no job: {str(error).strip().splitlines()[0]}") from None
        time.sleep(_POLL_S)


def _follow(client: JobSubmissionClient, submission_id: str, echo: Callable[[str], None]) -> int:
    try:
        return _followed(client, submission_id, echo)
    except (ConnectionError, RuntimeError) as error:
        raise TemporaryError(
            f"lost the dashboard ({type(error).__name__}); the job {submission_id} goes on. Submit again to follow it."
        ) from None


def _followed(client: JobSubmissionClient, submission_id: str, echo: Callable[[str], None]) -> int:
    printed = 0
    while True:
        status = client.get_job_status(submission_id)
        logs = client.get_job_logs(submission_id)
        if len(logs) > printed:
            echo(logs[printed:].rstrip("\n"))
            printed = len(logs)
        if status.is_terminal():
            break
        time.sleep(_POLL_S)
    details = client.get_job_info(submission_id)
    echo(f"job {submission_id}: {status.value}")
    if status == JobStatus.SUCCEEDED:
        return 0
    return int(details.driver_exit_code or 1)


def _digest(resolved: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]
