"""Lay out a demo in one folder and run it: its data, its two models, and a config that any run could have.

    WORKDIR/models/                               SmolLM2-135M-Instruct, and the reward model on top of it
    WORKDIR/100-pairs/pairs/pairs.jsonl           of `alignpot demo`: so many of the pairs that ship with alignpot
    WORKDIR/100-pairs/config.yaml                 the whole job; scored/ and subset/ appear beside it
    WORKDIR/prompts/prompts.jsonl, config.yaml    of `alignpot demo --self-play`; everything else appears in WORKDIR/run

A config that is there already stays, so changed settings survive.
"""

import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from pipeline.config import load_config, load_self_play
from pipeline.demo.models import build_reward_model, ensure_smollm2
from pipeline.errors import ConfigError
from pipeline.progress import progress

PAIRS_FILE: Final = Path(__file__).with_name("pairs.jsonl")
PROMPTS_FILE: Final = Path(__file__).with_name("prompts.jsonl")

_PAIRS_NOTE: Final = "# Written by `alignpot demo`. Change a setting and run it again: alignpot run {path}\n"
_SELF_PLAY_NOTE: Final = (
    "# Written by `alignpot demo --self-play`. Change a setting, and run it under another path:\n"
    "#     alignpot self-play {path} --set path=OTHER\n"
)


def run_demo(workdir: Path, num_pairs: int, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Score and select `num_pairs` of the demo's pairs; yields the texts of `alignpot run`, the report's path last."""
    from pipeline.commands import run_all

    config = write_demo(workdir, num_pairs)
    yield f"The config of this run: {config}\n"
    yield from run_all(load_config(config, overrides))


def run_self_play_demo(workdir: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Two rounds of self-play on the demo's prompts; yields the texts of `alignpot self-play`."""
    from pipeline.selfplay.rounds import self_play

    config = write_self_play_demo(workdir)
    yield from self_play(load_self_play(config, overrides))
    yield f"\nThe config of this run: {config}"


def write_demo(workdir: Path, num_pairs: int, models: Path | None = None) -> Path:
    """Put pairs, models and config into `workdir`; returns the config's path.

    The pairs are spread evenly over the file, whose rows are in order of topic. `models` is where both models go, about
    0.8 GB. Default: `workdir`/models.

    Raises:
        ConfigError: there are not so many pairs.
        ModelError: the wheel with SmolLM2 is not installed.
    """
    rows = PAIRS_FILE.read_text(encoding="utf-8").splitlines(keepends=True)
    if not 1 <= num_pairs <= len(rows):
        raise ConfigError(f"--pairs is {num_pairs}; the demo has {len(rows)} pairs. Give 1 to {len(rows)}.")
    picked = "".join(rows[i * len(rows) // num_pairs] for i in range(num_pairs))
    data = workdir / f"{num_pairs}-pairs" / "pairs" / PAIRS_FILE.name
    return _write(data, picked, models or workdir / "models", "pairs.yaml", _PAIRS_NOTE)


def write_self_play_demo(workdir: Path, models: Path | None = None) -> Path:
    """`write_demo` for self-play, with all of the prompts."""
    data, prompts = workdir / "prompts" / PROMPTS_FILE.name, PROMPTS_FILE.read_text(encoding="utf-8")
    return _write(data, prompts, models or workdir / "models", "self_play.yaml", _SELF_PLAY_NOTE)


def demo_config(folder: Path, policy: Path, reward: Path) -> dict[str, Any]:
    """The config of the demo: SimPO, the potential, the best 40 percent."""
    return dict(yaml.safe_load(_filled("pairs.yaml", folder, policy, reward)))


def self_play_demo_config(folder: Path, policy: Path, reward: Path) -> dict[str, Any]:
    """The config of the demo of self-play: two rounds of four responses a prompt, SimPO, full weights."""
    return dict(yaml.safe_load(_filled("self_play.yaml", folder, policy, reward)))


def _write(data: Path, text: str, models: Path, template: str, note: str) -> Path:
    """Write the data, build both models, and write a config above the data's folder unless one is there."""
    data, models = data.resolve(), models.resolve()
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(text, encoding="utf-8")
    with progress("models", 2, unit="models") as count:
        policy = ensure_smollm2(models)
        count(1)
        reward = build_reward_model(policy, models)
        count(1)
    folder = data.parent.parent
    config = folder / "config.yaml"
    if not config.exists():
        config.write_text(note.format(path=config) + _filled(template, folder, policy, reward), encoding="utf-8")
    return config


def _filled(name: str, folder: Path, policy: Path, reward: Path) -> str:
    """A config of this package with paths filled in, each as the inside of a YAML text in double quotes."""
    paths = {"folder": folder, "policy": policy, "reward": reward}
    quoted = {name: json.dumps(str(path), ensure_ascii=False)[1:-1] for name, path in paths.items()}
    return string.Template(Path(__file__).with_name(name).read_text(encoding="utf-8")).substitute(quoted)
