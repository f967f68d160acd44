"""Scores of real pairs by SmolLM2 and the demo's reward model, in the plain loop and on Ray."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import cli, schema
from pipeline.demo.models import build_reward_model
from pipeline.demo.run import PAIRS_FILE, demo_config
from tests.steps import scored_data

FILE: Final = Path(__file__).with_name("scores.json")
NUM_PAIRS: Final = 30
COLUMNS: Final = [
    schema.ID,
    schema.CONTENT_DIGEST,
    *(field.name for field in schema.SCORE_FIELDS),
    schema.DROP_STAGE,
    schema.DROP_REASON,
]


def found(folder: Path, policy: Path, engine: str) -> dict[str, list[Any]]:
    """The scored table of the first pairs of the demo, without their text, in its own order."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = demo_config(folder, policy, build_reward_model(policy, policy.parent))
    (folder / "pairs").mkdir()
    lines = PAIRS_FILE.read_text().splitlines(keepends=True)[:NUM_PAIRS]
    (folder / "pairs" / "pairs.jsonl").write_text("".join(lines))
    sections["run"] = {"engine": engine, "shard_rows": 8}
    sections["tokens"] = {"max_length": 110}
    cli.app(["score", str(scored_data.write_config(folder / "config.yaml", sections))], standalone_mode=False)
    parts = sorted((folder / "scored" / "parts").glob("*.parquet"))
    return pa.concat_tables(pq.read_table(path, columns=COLUMNS) for path in parts).to_pydict()


def written() -> dict[str, Any]:
    """What `found` gave when it was written down, and on what: `machine`, `columns`."""
    return json.loads(FILE.read_text())


def machine() -> Mapping[str, str]:
    """What decides the bits of a score: other kernels of torch round otherwise."""
    import torch

    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "machine": platform.machine(),
        "processor": processor.partition(": ")[2],
        "torch": torch.__version__.partition("+")[0],
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }
