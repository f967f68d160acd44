"""Lay out a demo in one folder: its data, its two models and the config of a command."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from pipeline.demo.reward import build_reward_model
from pipeline.demo.smollm2 import ensure_smollm2

MakeConfig: TypeAlias = Callable[[Path, Path, Path], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What a demo is made of.

    Attributes:
        data: file that ships with alignpot, copied into a folder named as the file is.
        header: comment on top of the config; `{path}` stands for the config's path.
        make_config: sections of the config, for the folder, the policy and the reward model.
    """

    data: Path
    header: str
    make_config: MakeConfig

    def write(self, workdir: Path, models_dir: Path | None = None) -> Path:
        """Put data, models and config into `workdir` and return the config's path; what is there already stays.

        Args:
            workdir: made if missing.
            models_dir: where the models go, about 0.8 GB; left out, `workdir/models`.

        Raises:
            ModelError: the wheel with SmolLM2 is not installed.
        """
        workdir = workdir.resolve()
        folder = workdir / self.data.stem
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.data, folder / self.data.name)
        models = (models_dir or workdir / "models").resolve()
        policy = ensure_smollm2(models)
        reward = build_reward_model(policy, models)
        config = workdir / "config.yaml"
        if not config.exists():
            sections = self.make_config(workdir, policy, reward)
            text = self.header.format(path=config) + yaml.safe_dump(sections, sort_keys=False)
            config.write_text(text, encoding="utf-8")
        return config
