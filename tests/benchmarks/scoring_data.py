"""What the scoring benchmarks have in common: the rows, the machine's own line, and SmolLM2's directory."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from tests.models.pairs import Row, demo_pairs, hh_pairs


def read_rows(data: Path | None, count: int) -> tuple[str, list[Row]]:
    """The first pairs of `data`, of HH-RLHF's harmless set if it is at hand, or of the demo's; and their name."""
    if data is not None:
        return data.name, hh_pairs(data, count)
    path = shared_data() / "hh_harmless.jsonl.gz"
    if path.exists():
        return "HH-RLHF harmless", hh_pairs(path, count)
    return "demo pairs", demo_pairs(count)


def shared_data() -> Path:
    """Where real data sets lie beside the repository."""
    return Path(os.environ.get("ALIGNPOT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"


def machine() -> dict[str, Any]:
    """Processor, cores, load averages, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "cpu": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "torch": torch.__version__,
    }
