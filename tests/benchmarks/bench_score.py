"""CPU seconds to score real pairs: our engine, the paper's batches, TRL's precomputation and vLLM on CPU.

    python -m tests.benchmarks.bench_score [--pairs 64] [--slow-pairs 8] [--data hh_harmless.jsonl.gz] [--repeats 1]
        [--without compiled paper trl vllm accuracy]

SmolLM2-135M-Instruct in bfloat16 on one thread; pairs are HH-RLHF's (ALIGNPOT_SHARED or ../shared), else our demo
pairs. Ours is the model as the pipeline loads it, and once more with `compile: true`. Each peer as it ships and at its
best: the paper's batches in the order of the data and sorted by length, vLLM without and with reading its prefix cache;
TRL has no other setting. A CPU without bfloat16 arithmetic makes peers slow in it: there they run in float32 over all
pairs, and in bfloat16 over the first `--slow-pairs` only. Before any time counts: the sums of all engines agree within
bfloat16 noise, and ours are the same to the bit in another order, under other token budgets and in other shards (on a
CPU with tiles that is looked at, not demanded). Then the error of our margins against float32, beside that of the
paper's. Times are medians over the repeats, CPU seconds of all threads, each peer in turns with ours. The last line is
a JSON object with the ratios.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import Tokens, TorchModel
from pipeline.demo.models import ensure_smollm2
from pipeline.models.cpu import has_arithmetic
from pipeline.models.loading import load_causal_lm
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import num_packed_tokens
from pipeline.models.prompts import PairTokenizer, TokenizedPair
from tests.benchmarks.scoring_checks import accuracy, check_agreement, check_invariance, num_tokens
from tests.benchmarks.scoring_data import machine, read_rows
from tests.benchmarks.scoring_peers import Timed, by_length, padded_tokens, paper_scores, timed_run
from tests.benchmarks.scoring_trl import run_trl
from tests.benchmarks.scoring_vllm import SETTINGS, has_vllm, run_vllm
from tests.models.pairs import Row, pair_groups, score_pairs

MOST_INVARIANCE_PAIRS = 24
CHOICES = ["compiled", "paper", "trl", "vllm", "accuracy"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """The model and the pairs that every engine scores."""

    directory: Path
    model: Any
    ours: LogprobEngine
    compiled: LogprobEngine | None
    tokenizer: Any
    rows: list[Row]
    pairs: list[TokenizedPair]

    def first(self, count: int) -> "Work":
        return replace(self, rows=self.rows[:count], pairs=self.pairs[:count])


@dataclass(frozen=True, kw_only=True)
class Peers:
    """How the peers are run: over which pairs, in which dtype, how often, and which of them not."""

    work: Work
    dtype: str
    repeats: int
    without: Sequence[str]


def section(directory: Path) -> TorchModel:
    return TorchModel(model=str(directory), dtype="bfloat16", num_gpus=0)


def load(data: Path | None, count: int, *, compiled: bool) -> Work:
    from transformers import AutoTokenizer

    directory = ensure_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    name, rows = read_rows(data, count)
    tokenized = [PairTokenizer(tokenizer, Tokens()).tokenize(**row) for row in rows]
    kept = [(row, pair) for row, pair in zip(rows, tokenized, strict=True) if isinstance(pair, TokenizedPair)]
    rows, pairs = [row for row, _ in kept], [pair for _, pair in kept]
    model = load_causal_lm(section(directory))
    print(f"{len(pairs)} pairs of {name}, {num_tokens(pairs).sum()} response tokens; {json.dumps(machine())}")
    print(f"ours computes in {model.dtype}")
    return Work(
        directory=directory,
        model=model,
        ours=LogprobEngine(model),
        compiled=LogprobEngine(load_causal_lm(section(directory)), compiled=True) if compiled else None,
        tokenizer=tokenizer,
        rows=rows,
        pairs=pairs,
    )


def peer_model(work: Work, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(work.directory, dtype=getattr(torch, dtype)).eval()


def time_here(peers: Peers) -> list[Timed]:
    """Ours and the peers of this process, in turns, so that a change of load meets all of them."""
    work, pairs, model = peers.work, peers.work.pairs, peer_model(peers.work, peers.dtype)
    for engine in (work.ours, work.compiled):
        if engine is not None:
            score_pairs(engine, pairs[:2])
    paper_scores(model, pairs[:2])
    order = by_length(pairs)
    back, ordered = np.argsort(order), [pairs[i] for i in order]
    tokens = sum(num_packed_tokens(group) for group in pair_groups(pairs))
    ours, compiled = (Timed(name=name, tokens=tokens) for name in ("alignpot", "alignpot, compiled"))
    paper = Timed(name="paper, 4 pairs a batch", tokens=padded_tokens(pairs))
    best = Timed(name="paper, sorted by length", tokens=padded_tokens(ordered))
    trl = Timed(name="TRL precompute, 4 pairs", tokens=padded_tokens(pairs))
    for _ in range(peers.repeats):
        time_ours(work, ours)
        if work.compiled is not None:
            time_ours(work, compiled, work.compiled)
        if "paper" not in peers.without:
            timed_run(paper, lambda: paper_scores(model, pairs))
            time_ours(work, ours)
            timed_run(best, lambda: paper_scores(model, ordered)[:, back])
        if "trl" not in peers.without:
            run_trl(model, work.tokenizer, work.rows, trl)
            time_ours(work, ours)
        if work.compiled is not None:
            time_ours(work, compiled, work.compiled)
    return [timed for timed in (ours, compiled, paper, best, trl) if timed.cpu_s]


def time_vllm(peers: Peers, ours: Timed) -> list[Timed]:
    """vLLM's settings, each followed by another turn of ours."""
    if "vllm" in peers.without or not has_vllm():
        print("vLLM is left out" if has_vllm() else "vLLM is not installed: skipped")
        return []
    found = []
    for name in SETTINGS:
        result = run_vllm(name, peers.work.directory, peers.work.pairs, repeats=peers.repeats, dtype=peers.dtype)
        title = name.replace("vLLM", f"vLLM {result['version']}")
        found.append(Timed(name=title, sums=result["sums"], cpu_s=result["cpu_s"], wall_s=result["wall_s"]))
        found[-1].show()
        time_ours(peers.work, ours)
    return found


def time_ours(work: Work, ours: Timed, engine: LogprobEngine | None = None) -> None:
    timed_run(ours, lambda: score_pairs(engine or work.ours, work.pairs))


def time_all(peers: Peers) -> list[Timed]:
    """Ours, then the peers, whose numbers are those of ours."""
    print(f"{f'{len(peers.work.pairs)} pairs, peers in {peers.dtype}':<40}{'CPU s':>9}{'wall s':>9}{'tokens':>10}")
    timed = time_here(peers)
    for each in timed[1:]:
        each.show()
    timed += time_vllm(peers, timed[0])
    timed[0].show()
    for other in timed[1:]:
        check_agreement(other, timed[0], peers.work.pairs)
    return timed


def figures(timed: Sequence[Timed], num_pairs: int) -> dict[str, Any]:
    """CPU seconds of all, and those of each peer over ours."""
    cpu_s = {t.name: statistics.median(t.cpu_s) for t in timed}
    ours = [name for name in cpu_s if name.startswith("alignpot")]
    return {
        "pairs": num_pairs,
        "cpu_s": {name: round(value, 3) for name, value in cpu_s.items()},
        **{
            f"ratio_to_{own}": {name: round(value / cpu_s[own], 3) for name, value in cpu_s.items() if name != own}
            for own in ours
        },
    }


def margins_error(work: Work) -> dict[str, float]:
    """In order of length, which the paper's form pads least; errors have no order."""
    pairs = [work.pairs[i] for i in by_length(work.pairs)]
    sums = score_pairs(work.ours, pairs)
    return accuracy(peer_model(work, "bfloat16"), peer_model(work, "float32"), sums, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark log-probability scoring.")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--slow-pairs", type=int, default=8, help="pairs for peers in a dtype that the CPU emulates")
    parser.add_argument("--data", type=Path, help="hh_harmless.jsonl.gz")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without", nargs="*", choices=CHOICES, default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = load(options.data, options.pairs, compiled="compiled" not in options.without)
    some = work.pairs[:MOST_INVARIANCE_PAIRS]
    num_ways = check_invariance(work.model, some)
    if work.compiled is not None:
        num_ways += check_invariance(load_causal_lm(section(work.directory)), some, compiled=True)
    turns = {"bfloat16": work}
    if not has_arithmetic(torch.bfloat16):
        turns = {"float32": work, "bfloat16": work.first(options.slow_pairs)}
    found = {}
    for dtype, some in turns.items():
        peers = Peers(work=some, dtype=dtype, repeats=options.repeats, without=options.without)
        found[f"peers in {dtype}"] = figures(time_all(peers), len(some.pairs))
    errors = {} if "accuracy" in options.without else margins_error(work)
    result = {
        **found,
        "repeats": options.repeats,
        "margin_error": errors,
        "bitwise_equal_ways": num_ways,
        "machine": machine() | {"threads": torch.get_num_threads(), "bfloat16": has_arithmetic(torch.bfloat16)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
