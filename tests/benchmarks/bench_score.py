"""CPU seconds to score real pairs: our engine, the paper's way of batching, and TRL's precomputation.

    python -m tests.benchmarks.bench_score [--pairs 64] [--data hh_harmless.jsonl.gz] [--repeats 1] [--without-trl]

SmolLM2-135M-Instruct in bfloat16 on one thread; pairs are HH-RLHF's (ALIGNPOT_SHARED or ../shared), else our demo
pairs. The paper's batching is written anew after its description: chosen and rejected padded together, 4 pairs a batch,
logits of every position, a bfloat16 log-softmax for the mean and another for the sum, two means of the logits. `sorted`
gives it its best setting, pairs ordered by length. TRL is its real DPOTrainer; only compute_ref_log_probs is timed.
The sums of all engines must agree within bfloat16 noise. The last line is a JSON object with the ratios.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import Tokens
from pipeline.demo.smollm2 import ensure_smollm2
from pipeline.models.logprobs import LogprobEngine, score_pairs
from pipeline.models.packing import Completion, num_packed_tokens
from pipeline.models.prompts import PairTokenizer, TokenizedPair
from tests.models.pairs import Row, demo_pairs, hh_pairs
from tests.models.trl_reference import trl_trainer

BATCH_PAIRS = 4
PADDING, IGNORED = 2, -100
MEAN_LOGP_MAX, MEAN_LOGP_RMS = 0.05, 0.02

Sums = np.ndarray  # (2, pairs): chosen and rejected, summed log-probabilities


@dataclass(kw_only=True)
class Timed:
    """What one engine gave and took."""

    name: str
    tokens: int
    sums: Sums | None = None
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)


@contextmanager
def timing(into: Timed) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into.cpu_s.append(time.process_time() - cpu)
    into.wall_s.append(time.perf_counter() - wall)


def padded(batch: Sequence[TokenizedPair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels of the chosen sequences over the rejected ones, right-padded."""
    sides = [(p.chosen_ids, p.chosen_start) for p in batch] + [(p.rejected_ids, p.rejected_start) for p in batch]
    longest = max(len(ids) for ids, _ in sides)
    ids = torch.full((len(sides), longest), PADDING)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, (tokens, start) in enumerate(sides):
        ids[row, : len(tokens)] = torch.as_tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, start : len(tokens)] = torch.as_tensor(tokens[start:])
    return ids, mask, labels


def summed(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per sequence: summed log-probability and number of labelled tokens, all positions log-softmaxed."""
    labels, logits = labels[:, 1:].clone(), logits[:, :-1]
    scored = labels != IGNORED
    labels[~scored] = 0
    logp = logits.log_softmax(-1).gather(2, labels[:, :, None])[:, :, 0]
    return (logp * scored).sum(-1), scored.sum(-1)


@torch.no_grad()
def paper_scores(model: Any, pairs: Sequence[TokenizedPair]) -> Sums:
    found = []
    for begin in range(0, len(pairs), BATCH_PAIRS):
        batch = pairs[begin : begin + BATCH_PAIRS]
        ids, mask, labels = padded(batch)
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        total, count = summed(logits, labels)
        _ = total / count
        sums, _ = summed(logits, labels)
        for side in logits.split(len(batch)):
            side.mean()
        found.append(sums.float().view(2, -1).numpy())
    return np.concatenate(found, axis=1)


def padded_tokens(pairs: Sequence[TokenizedPair]) -> int:
    return sum(padded(pairs[i : i + BATCH_PAIRS])[0].numel() for i in range(0, len(pairs), BATCH_PAIRS))


def by_length(pairs: Sequence[TokenizedPair]) -> list[int]:
    return sorted(range(len(pairs)), key=lambda i: max(len(pairs[i].chosen_ids), len(pairs[i].rejected_ids)))


def time_engine(timed: Timed, score: Callable[[], Sums], repeats: int) -> Timed:
    for _ in range(repeats):
        with timing(timed):
            timed.sums = score()
    show(timed)
    return timed


def time_trl(model: Any, tokenizer: Any, rows: list[Row], timed: Timed) -> Timed:
    """Time the log-probability batches inside a real DPOTrainer's precomputation."""
    from trl import DPOTrainer

    original = DPOTrainer.compute_ref_log_probs
    spent = Timed(name="batch", tokens=0)

    def clocked(self: Any, *args: Any) -> Any:
        with timing(spent):
            return original(self, *args)

    DPOTrainer.compute_ref_log_probs = clocked
    try:
        with tempfile.TemporaryDirectory() as output:
            trainer = trl_trainer(model, tokenizer, rows, Path(output), max_length=2048)
    finally:
        DPOTrainer.compute_ref_log_probs = original
    columns = [trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")]
    timed.sums = np.asarray([list(column) for column in columns])
    timed.cpu_s.append(sum(spent.cpu_s))
    timed.wall_s.append(sum(spent.wall_s))
    show(timed)
    return timed


def check(timed: Timed, ours: Timed, num_tokens: np.ndarray) -> None:
    """The correctness gate: mean log-probabilities within bfloat16 noise of each other."""
    assert timed.sums is not None
    assert ours.sums is not None
    difference = np.abs(timed.sums - ours.sums) / num_tokens
    worst, rms = float(difference.max()), float(np.sqrt(np.mean(difference**2)))
    print(f"gate {timed.name}: mean log-prob differs from ours by {worst:.4f} at most, {rms:.4f} RMS", flush=True)
    # Both sides carry noise of that size against float32.
    if worst > 2 * MEAN_LOGP_MAX or rms > 2 * MEAN_LOGP_RMS:
        sys.exit(f"{timed.name} and our engine disagree: {worst:.4f} at most, {rms:.4f} RMS")


def show(timed: Timed) -> None:
    cpu, wall = statistics.median(timed.cpu_s), statistics.median(timed.wall_s)
    print(f"{timed.name:<28}{cpu:>9.2f}{wall:>9.2f}{timed.tokens:>10}", flush=True)


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def read_rows(data: Path | None, count: int) -> tuple[str, list[Row]]:
    shared = Path(os.environ.get("ALIGNPOT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
    folder = data.parent if data else shared
    if (folder / "hh_harmless.jsonl.gz").exists():
        return "HH-RLHF harmless", hh_pairs(folder, count)
    return "demo pairs", demo_pairs(count)


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark log-probability scoring.")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--data", type=Path, help="hh_harmless.jsonl.gz")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without-trl", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = ensure_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    name, rows = read_rows(options.data, options.pairs)
    pairs = [p for row in rows if isinstance(p := PairTokenizer(tokenizer, Tokens()).tokenize(**row), TokenizedPair)]
    num_tokens = np.array([[p.num_tokens_chosen, p.num_tokens_rejected] for p in pairs]).T
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    engine = LogprobEngine(model)
    print(f"{len(pairs)} pairs of {name}, {num_tokens.sum()} response tokens; {json.dumps(machine())}")
    print(f"{'engine':<28}{'CPU s':>9}{'wall s':>9}{'tokens':>10}")
    score_pairs(engine, pairs[:2])
    paper_scores(model, pairs[:2])
    order = by_length(pairs)
    back = np.argsort(order)
    packed = sum(
        num_packed_tokens([Completion(ids=p.chosen_ids, start=1), Completion(ids=p.rejected_ids, start=1)])
        for p in pairs
    )
    ours = time_engine(
        Timed(name="alignpot", tokens=packed), lambda: np.stack(score_pairs(engine, pairs)), options.repeats
    )
    ordered = [pairs[i] for i in order]
    paper = Timed(name="paper, 4 pairs a batch", tokens=padded_tokens(pairs))
    best = Timed(name="paper, sorted by length", tokens=padded_tokens(ordered))
    others = [
        time_engine(paper, lambda: paper_scores(model, pairs), options.repeats),
        time_engine(best, lambda: paper_scores(model, ordered)[:, back], options.repeats),
    ]
    if not options.without_trl:
        trl = Timed(name="TRL precompute, 4 pairs", tokens=padded_tokens(pairs))
        for _ in range(options.repeats):
            time_trl(model, tokenizer, rows, trl)
        others.append(trl)
    for other in others:
        check(other, ours, num_tokens)
    cpu = {timed.name: statistics.median(timed.cpu_s) for timed in [ours, *others]}
    ratios = {other.name: round(cpu[other.name] / cpu[ours.name], 3) for other in others}
    print(json.dumps({"pairs": len(pairs), "cpu_s": cpu, "ratio_to_alignpot": ratios, "machine": machine()}))


if __name__ == "__main__":
    main()
