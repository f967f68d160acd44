"""The demo of `alignpot self-play`: prompts, two small models and a config of two rounds, in one folder.

    WORKDIR/prompts/prompts.jsonl    the prompts that ship with alignpot
    WORKDIR/models/                  SmolLM2-135M-Instruct, and the reward model on top of it
    WORKDIR/config.yaml              two rounds; everything else appears below WORKDIR/run

A config that is there already stays, so that changed settings survive.
"""

from pathlib import Path
from typing import Any, Final

from pipeline.demo.sample_pairs import PROMPTS_FILE
from pipeline.demo.workdir import Demo

_HEADER: Final = (
    "# Written by `alignpot demo --self-play`. Change a setting, and run it under another path:\n"
    "#     alignpot self-play {path} --set path=OTHER\n"
)


def self_play_demo_config(workdir: Path, policy: Path, reward: Path) -> dict[str, Any]:
    """The sections of the demo's config: two rounds of four responses a prompt, SimPO, full weights."""
    return {
        "preset": "paper-selfplay",
        "path": str(workdir / "run"),
        "prompts": {"path": str(workdir / "prompts"), "format": "prompts", "id_column": "id"},
        # float32 throughout: the small steps of training would be lost in bfloat16 weights.
        "policy": {"model": str(policy), "dtype": "float32", "token_budget": 4096, "num_threads": 2},
        "reward": {
            "backend": "classifier",
            "model": str(reward),
            "dtype": "float32",
            "token_budget": 4096,
            "num_threads": 2,
        },
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


SELF_PLAY_DEMO: Final = Demo(data=PROMPTS_FILE, header=_HEADER, make_config=self_play_demo_config)
