"""What the scoring benchmarks have in common: the rows, the machine's own line, and SmolLM2's directory."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from tests.models.pairs import Row, demo_pairs, hh_pairs


def read_rows(data: Path | None, count: int) -> tuple[str, list[Row]]:
    """The first pairs of HH-RLHF's harmless set where it is at hand, else of the demo's, and the set's name."""
    shared = Path(os.environ.get("ALIGNPOT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
    folder = data.parent if data else shared
    if (folder / "hh_harmless.jsonl.gz").exists():
        return "HH-RLHF harmless", hh_pairs(folder, count)
    return "demo pairs", demo_pairs(count)


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
