"""vLLM as a scorer: `prompt_logprobs=0` over every prompt with its response, in a process of its own.

plain: as a user would call it; vLLM then never reads its prefix cache, so a pair's prompt is computed twice.
best: `skip_reading_prefix_cache=False` lets a response start from the cached prompt, in blocks of 32 tokens, the
smallest that vLLM's CPU kernels take. vLLM leaves the rows that it took from the cache unset, so a sequence may read
the cache only where no block that it shares with another reaches into its response; the others are run as in plain.
Larger steps than vLLM's own gained nothing.

Run as a module it reads {model, dtype, settings, sequences, repeats} from a JSON file and writes sums and times.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.models.prompts import TokenizedPair

BLOCK: Final = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "vLLM, plain": {"enable_prefix_caching": False},
    "vLLM, best": {"enable_prefix_caching": True, "block_size": BLOCK},
}
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def has_vllm() -> bool:
    """Whether vLLM is installed; it is none of our dependencies."""
    return importlib.util.find_spec("vllm") is not None


def run_vllm(
    name: str, model: Path, pairs: Sequence[TokenizedPair], *, repeats: int, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Sums of shape (2, pairs), CPU and wall seconds of each repeat, and vLLM's version."""
    sequences = [
        [side.tolist(), start]
        for p in pairs
        for side, start in ((p.chosen_ids, p.chosen_start), (p.rejected_ids, p.rejected_start))
    ]
    job = {"model": str(model), "dtype": dtype, "settings": SETTINGS[name]}
    job |= {"sequences": sequences, "repeats": repeats}
    with tempfile.TemporaryDirectory(prefix="alignpot-vllm-") as folder:
        path, result = Path(folder) / "job.json", Path(folder) / "result.json"
        path.write_text(json.dumps(job))
        command = [sys.executable, "-m", "tests.benchmarks.scoring_vllm", str(path), str(result)]
        done = subprocess.run(command, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
        found = json.loads(result.read_text())
    return found | {"sums": np.asarray(found["sums"]).reshape(-1, 2).T}


def readable(sequences: Sequence[tuple[list[int], int]]) -> list[bool]:
    """Which sequences share no whole block beyond the row that predicts their first response token."""
    blocks = Counter(tuple(ids[:end]) for ids, _ in sequences for end in range(BLOCK, len(ids) + 1, BLOCK))

    def shared(ids: list[int]) -> int:
        return max((end for end in range(BLOCK, len(ids) + 1, BLOCK) if blocks[tuple(ids[:end])] > 1), default=0)

    return [shared(ids) < start for ids, start in sequences]


def serve(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    from tests.benchmarks.scoring_peers import Timed, timing

    torch.set_num_threads(1)
    llm = LLM(
        model=job["model"],
        dtype=job["dtype"],
        max_model_len=2048,
        enforce_eager=True,
        disable_log_stats=True,
        **job["settings"],
    )
    caching = job["settings"]["enable_prefix_caching"]
    plain = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    from_cache = plain.clone()
    from_cache.skip_reading_prefix_cache = False

    def score() -> list[float]:
        prompts: Any = [{"prompt_token_ids": ids} for ids, _ in job["sequences"]]
        may_read = readable(job["sequences"]) if caching else [False] * len(prompts)
        outputs = llm.generate(prompts, [from_cache if may else plain for may in may_read], use_tqdm=False)
        return [
            sum(
                position[token].logprob
                for position, token in zip(output.prompt_logprobs[start:], ids[start:], strict=True)
            )
            for output, (ids, start) in zip(outputs, job["sequences"], strict=True)
        ]

    timed, sums = Timed(name="vLLM"), score()  # the first pass is warm-up
    for _ in range(job["repeats"]):
        llm.reset_prefix_cache()
        with timing(timed):
            sums = score()
    return {"sums": sums, "cpu_s": timed.cpu_s, "wall_s": timed.wall_s, "version": vllm.__version__}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(serve(json.loads(Path(sys.argv[1]).read_text()))))
