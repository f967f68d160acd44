"""What travels with a job: the modules of this package and the resolved config, and nothing else.

The cluster's image provides the dependencies, so the cluster runs the code that the job was submitted with. Weights,
data, the demo and whatever else lies beside the modules (caches, notebooks, .env, .git) stay here. Chat templates that
the config names are part of the resolved config. Nothing here needs Ray.
"""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

import pipeline
from pipeline.config import (
    Config,
    Prompts,
    RewardConfig,
    SelfPlayConfig,
    Source,
    TorchModel,
    load_any,
    load_config,
    load_reward,
    load_self_play,
    without_table,
)
from pipeline.errors import ConfigError

PROXY_KEY: Final = "score.proxy"
CONFIG_FILE: Final = "config.yaml"
JOBS: Final = {
    "run": "run",
    "score": "score",
    "select": "select",
    "reward": "reward",
    "self-play": "self-play",
    "score_pairs": "score",
    "select_pairs": "select",
    "self_play": "self-play",
    "doctor": "doctor",
}
"""Command of each job; the names of the scripts in jobs/ are accepted too."""
_WRITTEN: Final = {
    "run": ("scored", "output.path"),
    "score": ("scored",),
    "select": ("output.path",),
    "reward": ("rewarded",),
    "self-play": ("path",),
}
"""Keys of the places that a command writes datasets to."""
AnyConfig = Config | SelfPlayConfig | RewardConfig

_PACKAGE: Final = Path(pipeline.__file__).parent
_SUFFIXES: Final = frozenset({".py", ".txt", ".json", ".jinja", ".css", ".js", ".yaml"})
_LEFT_OUT: Final = frozenset({"demo", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Shipment:
    """A command, and the config that it is to run with."""

    command: str
    config: AnyConfig

    @property
    def submission_id(self) -> str:
        """Made of command and config; later tries have a number behind it."""
        return f"alignpot-{self.command}-{config_digest(self.config)}"

    @property
    def entrypoint(self) -> str:
        """The shell command that runs in the folder of the job."""
        return shlex.join(["python", "-m", "pipeline.cli", self.command, CONFIG_FILE])

    @property
    def metadata(self) -> dict[str, str]:
        """What the cluster tells about the job: its command, and where its datasets will lie."""
        places = named_places(self.config)[0]
        written = [places[key] for key in _WRITTEN.get(self.command, ()) if key in places]
        return {
            "alignpot_command": self.command,
            "alignpot_places": json.dumps(written),
            "alignpot_storage": json.dumps(self.config.storage.model_dump(mode="json")),
        }

    def write(self, folder: Path) -> Mapping[str, Any]:
        """Put everything into an empty folder; returns the runtime environment that sends it."""
        for path in _modules():
            target = folder / _PACKAGE.name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_PACKAGE / path, target)
        (folder / CONFIG_FILE).write_text(self._config_text(), encoding="utf-8")
        return {"working_dir": str(folder)}

    def _config_text(self) -> str:
        return yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)

    def render(self) -> str:
        """The job and its files with their sizes, as text."""
        sizes = {f"{_PACKAGE.name}/{path}": (_PACKAGE / path).stat().st_size for path in _modules()}
        sizes[CONFIG_FILE] = len(self._config_text().encode())
        total = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
        job = [
            ("id", self.submission_id),
            ("entrypoint", self.entrypoint),
            ("runtime_env", json.dumps({"working_dir": f"a folder with these {total}"})),
        ]
        files = [f"{size:>10,}  {name}" for name, size in sizes.items()]
        return "\n".join([*(f"{name:<11}  {value}" for name, value in job), "", *files, "", "Nothing was submitted."])


def prepare_job(job: str, config: Path, overrides: Sequence[str]) -> Shipment:
    """The job of a command and its config file.

    Raises a ConfigError for an unknown job, a config that does not parse, or one that means nothing on a cluster.
    """
    if job not in JOBS:
        raise ConfigError(f"unknown job {job!r}; wanted one of {', '.join(JOBS)}")
    loaders: dict[str, Callable[[Path, Sequence[str]], AnyConfig]]
    loaders = {"self-play": load_self_play, "reward": load_reward, "doctor": load_any}
    parsed = loaders.get(JOBS[job], load_config)(config, overrides)
    _check_paths(parsed)
    return Shipment(JOBS[job], parsed)


def config_digest(config: AnyConfig) -> str:
    """What the id of a job says of its config: 12 hex digits that change with any key."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_of(submission_id: str, digest: str) -> bool:
    """Whether a job works on the config of that digest, by whatever command and at whatever try."""
    return re.fullmatch(rf"alignpot-(?!doctor)[a-z-]+-{digest}(-\d+)?", submission_id) is not None


def _modules() -> Iterator[Path]:
    """The files of the package that a job needs, relative to it."""
    for path in sorted(_PACKAGE.rglob("*")):
        inner = path.relative_to(_PACKAGE)
        hidden = any(part.startswith(".") or part in _LEFT_OUT for part in inner.parts)
        if path.suffix in _SUFFIXES and path.is_file() and not hidden:
            yield inner


def _check_paths(config: AnyConfig) -> None:
    """Refuse relative paths: they mean something else on the cluster's head node, and nothing on its workers."""
    places, models = named_places(config)
    paths = {name: without_table(path) for name, path in places.items()}
    relative = [name for name, path in paths.items() if "://" not in path and not Path(path).is_absolute()]
    for role, model in models.items():
        for key, name in ((f"{role}.model", model.model), (f"{role}.adapter", model.adapter)):
            if name and not Path(name).is_absolute() and (name.startswith((".", "~")) or Path(name).is_dir()):
                relative.append(key)
    if relative:
        raise ConfigError(
            f"{', '.join(relative)}: a relative path cannot be submitted. Give an object-store URL such as "
            "s3://bucket/prefix, or the absolute path of a folder that every node mounts."
        )


def named_places(config: AnyConfig) -> tuple[dict[str, str], dict[str, TorchModel]]:
    """Paths and models that a config names, by key."""
    places = {} if config.run.cache is None else {"run.cache": config.run.cache}
    read: Mapping[str, Source | Prompts]
    if isinstance(config, Config):
        read, places["scored"] = config.all_sources(), config.scored
        if config.output is not None:
            places["output.path"] = config.output.path
            if config.output.table is not None and config.output.table.kind != "iceberg":
                places["output.table.path"] = config.output.table.path
    elif isinstance(config, RewardConfig):
        read, places["rewarded"] = {"source": config.source}, config.rewarded
    else:
        read, places["path"] = {"prompts": config.prompts}, config.path
        if config.train is not None and config.train.policies is not None:
            places["train.policies"] = config.train.policies
    for key, source in read.items():
        places[f"{key}.path"] = source.path
        places |= {f"{key}.decontaminate[{i}]": path for i, path in enumerate(source.decontaminate)}
    proxy = config.score.proxy if isinstance(config, Config) else None
    return places, config.torch_models() | ({} if proxy is None else {PROXY_KEY: proxy})
