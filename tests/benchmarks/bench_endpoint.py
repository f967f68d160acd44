"""Whether 64 requests in flight keep a served reward model busy: its rate beside the same engine without a server.

The demo's reward model, in float32 with one thread, scores the same dialogues in turn by vLLM in this process and by
a vLLM server on loopback. Prints one JSON object; `ratio` is the median of served over offline rates of neighbours.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.config import EndpointReward, Tokens, VllmReward
from pipeline.demo.models import build_reward_model, ensure_smollm2
from pipeline.rewards.backend import Dialogue, Scorer
from pipeline.rewards.registry import reward_backend
from tests.rewards.vllm_server import vllm_serving
from tests.steps.conftest import PAIRS

_MOST_TOKENS: Final = 512


def dialogues(section: Any, num_rows: int) -> list[list[Dialogue]]:
    """The first dialogues of the demo's pairs, as token ids."""
    tokenizer = reward_backend(section).tokenizer(Tokens())
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()[: num_rows // 2]]
    return [
        [Dialogue(id=row["id"], ids=tokenizer.tokenize_one(row["prompt"], row[side]).ids)]
        for row in rows
        for side in ("chosen", "rejected")
    ]


def timed(score: Callable[[Any], Any], rows: Any) -> tuple[float, Any]:
    """Rows a second, and what was found."""
    start = time.perf_counter()
    found = score(rows)
    return len(rows) / (time.perf_counter() - start), found.values


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignpot-bench-") as folder:
        model = build_reward_model(ensure_smollm2(), Path(folder))
        keys: dict[str, Any] = {"model": str(model), "max_length": _MOST_TOKENS}
        own = VllmReward(backend="vllm", dtype="float32", num_gpus=0, **keys)
        offline: Scorer = reward_backend(own).scorer()
        with vllm_serving(model, "rm", Path(folder) / "vllm.log", "--no-enable-prefix-caching") as url:
            section = EndpointReward(backend="endpoint", kind="vllm", urls=(url,), served_name="rm", **keys)
            served = reward_backend(section).scorer()
            rows = dialogues(own, given.rows)
            rates: dict[str, list[float]] = {"offline": [], "served": []}
            for scorer in (offline, served):
                scorer.score(rows[:16])
            for _ in range(given.repeats):
                for name, scorer in (("offline", offline), ("served", served)):
                    rate, values = timed(scorer.score, rows)
                    rates[name].append(rate)
                    assert np.isfinite(values).all()
            served.close()
            offline.close()
    ratios = [one / other for one, other in zip(rates["served"], rates["offline"], strict=True)]
    machine = {"cores": os.cpu_count(), "load_at_the_end": os.getloadavg()[0]}
    print(
        json.dumps(
            {
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "rows": len(rows),
                "tokens": sum(len(group[0].ids) for group in rows),
                "rows_per_s": {name: [round(rate, 2) for rate in found] for name, found in rates.items()},
                **machine,
            }
        )
    )


if __name__ == "__main__":
    main()
