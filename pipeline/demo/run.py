"""Lay out the demo in one folder: the pairs, the two models and the config that `alignpot run` takes.

    WORKDIR/pairs/pairs.jsonl    the preference pairs that ship with alignpot
    WORKDIR/models/              SmolLM2-135M-Instruct, and the reward model on top of it
    WORKDIR/config.yaml          the whole job; scored/ and subset/ appear beside it

A config that is there already stays, so that changed settings survive.
"""

import shutil
from pathlib import Path
from typing import Any, Final

import yaml

from pipeline.demo.reward import build_reward_model
from pipeline.demo.sample_pairs import PAIRS_FILE
from pipeline.demo.smollm2 import ensure_smollm2

_HEADER: Final = "# Written by `alignpot demo`. Change a setting and run it again: alignpot run {path}\n"


def write_demo(workdir: Path, models_dir: Path | None = None) -> Path:
    """Put pairs, models and config into `workdir` and return the config's path; what is there already stays.

    Args:
        workdir: made if missing.
        models_dir: where the models go, about 0.8 GB; left out, `workdir/models`.

    Raises:
        ModelError: the wheel with SmolLM2 is not installed.
    """
    workdir = workdir.resolve()
    pairs = workdir / "pairs"
    pairs.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PAIRS_FILE, pairs / PAIRS_FILE.name)
    models = (models_dir or workdir / "models").resolve()
    policy = ensure_smollm2(models)
    reward = build_reward_model(policy, models)
    config = workdir / "config.yaml"
    if not config.exists():
        text = yaml.safe_dump(demo_config(workdir, policy, reward), sort_keys=False)
        config.write_text(_HEADER.format(path=config) + text, encoding="utf-8")
    return config


def demo_config(workdir: Path, policy: Path, reward: Path) -> dict[str, Any]:
    """The sections of the demo's config: SimPO, the potential, the best 40 percent."""
    shared = {"dtype": "bfloat16", "token_budget": 4096}
    return {
        "source": {"path": str(workdir / "pairs"), "format": "messages", "id_column": "id", "passthrough": ["label"]},
        "policy": {"model": str(policy), **shared},
        "reward": {"backend": "classifier", "model": str(reward), **shared},
        "tokens": {"max_length": 1024},
        "scored": str(workdir / "scored"),
        "objective": {"name": "simpo", "beta": 2.0},
        "metric": {"name": "potential"},
        "select": {"fraction": 0.4},
        "output": {"path": str(workdir / "subset"), "formats": ["hf", "parquet"]},
        "run": {"engine": "ray", "shard_rows": 64},
    }
