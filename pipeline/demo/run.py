"""The demo of `alignpot run`: preference pairs, two small models and the config of the whole job, in one folder.

    WORKDIR/pairs/pairs.jsonl    the preference pairs that ship with alignpot
    WORKDIR/models/              SmolLM2-135M-Instruct, and the reward model on top of it
    WORKDIR/config.yaml          the whole job; scored/ and subset/ appear beside it

A config that is there already stays, so that changed settings survive.
"""

from pathlib import Path
from typing import Any, Final

from pipeline.demo.sample_pairs import PAIRS_FILE
from pipeline.demo.workdir import Demo

_HEADER: Final = "# Written by `alignpot demo`. Change a setting and run it again: alignpot run {path}\n"


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
        "run": {"engine": "ray", "shard_rows": 16},
    }


DEMO: Final = Demo(data=PAIRS_FILE, header=_HEADER, make_config=demo_config)
