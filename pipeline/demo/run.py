"""Lay out a demo in one folder and run it: its data, its two models, and a config that any run could have.

    WORKDIR/models/                               SmolLM2-135M-Instruct, and the reward model on top of it
    WORKDIR/100-pairs/pairs/pairs.jsonl           of `alignpot demo`: so many of the pairs that ship with alignpot
    WORKDIR/100-pairs/config.yaml                 the whole job; scored/ and subset/ appear beside it
    WORKDIR/prompts/prompts.jsonl, config.yaml    of `alignpot demo --self-play`; everything else appears in WORKDIR/run

A config that is there already stays, so changed settings survive.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from pipeline.config import load_config, load_self_play
from pipeline.demo.models import build_reward_model, ensure_smollm2
from pipeline.errors import ConfigError
from pipeline.progress import progress

PAIRS_FILE: Final = Path(__file__).with_name("pairs.jsonl")
PROMPTS_FILE: Final = Path(__file__).with_name("prompts.jsonl")

_MakeConfig: TypeAlias = Callable[[Path, Path, Path], dict[str, Any]]

_PAIRS_NOTE: Final = "# Written by `alignpot demo`. Change a setting and run it again: alignpot run {path}\n"
_SELF_PLAY_NOTE: Final = (
    "# Written by `alignpot demo --self-play`. Change a setting, and run it under another path:\n"
    "#     alignpot self-play {path} --set path=OTHER\n"
)


def run_demo(workdir: Path, num_pairs: int, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Score and select `num_pairs` of the demo's pairs; yields the texts of `alignpot run`.

    Raises:
        ConfigError: there are not so many pairs.
        AlignpotError: what stopped the run.
    """
    from pipeline.commands import run_all

    config = write_demo(workdir, num_pairs)
    yield from run_all(load_config(config, overrides))
    yield f"\nThe config of this run: {config}"


def run_self_play_demo(workdir: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Two rounds of self-play on the demo's prompts; yields the texts of `alignpot self-play`.

    Raises:
        AlignpotError: what stopped the run.
    """
    from pipeline.selfplay.rounds import self_play

    config = write_self_play_demo(workdir)
    yield from self_play(load_self_play(config, overrides))
    yield f"\nThe config of this run: {config}"


def write_demo(workdir: Path, num_pairs: int, models: Path | None = None) -> Path:
    """Put pairs, models and config into `workdir`; returns the config's path.

    The pairs are spread evenly over the file, whose rows are in order of topic. `models` is where both models go, about
    0.8 GB; left out, `workdir`/models.

    Raises:
        ConfigError: there are not so many pairs.
        ModelError: the wheel with SmolLM2 is not installed.
    """
    rows = PAIRS_FILE.read_text(encoding="utf-8").splitlines(keepends=True)
    if not 1 <= num_pairs <= len(rows):
        raise ConfigError(f"--pairs is {num_pairs}; the demo has {len(rows)} pairs. Give 1 to {len(rows)}.")
    picked = [rows[i * len(rows) // num_pairs] for i in range(num_pairs)]
    folder = workdir / f"{num_pairs}-pairs"
    return _write(folder, models or workdir / "models", PAIRS_FILE.name, picked, demo_config, _PAIRS_NOTE)


def write_self_play_demo(workdir: Path, models: Path | None = None) -> Path:
    """`write_demo` for self-play, with all of the prompts."""
    rows = PROMPTS_FILE.read_text(encoding="utf-8").splitlines(keepends=True)
    return _write(
        workdir, models or workdir / "models", PROMPTS_FILE.name, rows, self_play_demo_config, _SELF_PLAY_NOTE
    )


def demo_config(folder: Path, policy: Path, reward: Path) -> dict[str, Any]:
    """The config of the demo: SimPO, the potential, the best 40 percent."""
    shared = {"dtype": "bfloat16", "token_budget": 4096}
    return {
        "source": {"path": str(folder / "pairs"), "format": "messages", "id_column": "id", "passthrough": ["label"]},
        "policy": {"model": str(policy), **shared},
        "reward": {"backend": "classifier", "model": str(reward), **shared},
        "tokens": {"max_length": 1024},
        "scored": str(folder / "scored"),
        "objective": {"name": "simpo", "beta": 2.0},
        "metric": {"name": "potential"},
        "select": {"fraction": 0.4},
        "output": {"path": str(folder / "subset"), "formats": ["hf", "parquet"]},
        "run": {"engine": "ray", "shard_rows": 8},
    }


def self_play_demo_config(folder: Path, policy: Path, reward: Path) -> dict[str, Any]:
    """The config of the demo of self-play: two rounds of four responses a prompt, SimPO, full weights."""
    # float32 throughout: the small steps of training would be lost in bfloat16 weights.
    shared = {"dtype": "float32", "token_budget": 4096, "num_threads": 2}
    return {
        "preset": "paper-selfplay",
        "path": str(folder / "run"),
        "prompts": {"path": str(folder / "prompts"), "format": "prompts", "id_column": "id"},
        "policy": {"model": str(policy), **shared},
        "reward": {"backend": "classifier", "model": str(reward), **shared},
        "tokens": {"max_length": 1024, "max_prompt_length": 768},
        "objective": {"name": "simpo", "beta": 2.0},
        "select": {"fraction": 0.5},
        "generate": {"engine": "vllm", "num_responses": 4, "max_tokens": 192, "num_cpus": 2, "num_threads": 2},
        "pair": {"rule": "best-worst", "finished_only": True},
        "evolve": {"per_prompt": 2, "max_tokens": 96},
        "train": {
            "method": "simpo",
            "start_from": "base",
            "data": "all",
            "learning_rate": 5e-5,
            "epochs": 1,
            "batch_size": 4,
            "dtype": "float32",
            "num_threads": 2,
        },
        "evaluate": {"num_prompts": 48, "num_responses": 2},
        "rounds": 2,
        "run": {"engine": "ray", "shard_rows": 64, "max_dropped": 0.2},
    }


def _write(folder: Path, models: Path, name: str, rows: Sequence[str], make: _MakeConfig, note: str) -> Path:
    folder, models = folder.resolve(), models.resolve()
    data = folder / Path(name).stem / name
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(rows), encoding="utf-8")
    with progress("models", 2, unit="models") as count:
        policy = ensure_smollm2(models)
        count(1)
        reward = build_reward_model(policy, models)
        count(1)
    config = folder / "config.yaml"
    if not config.exists():
        text = yaml.safe_dump(make(folder, policy, reward), sort_keys=False)
        config.write_text(note.format(path=config) + text, encoding="utf-8")
    return config
