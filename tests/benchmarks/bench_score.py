"""CPU seconds to score real pairs: our engine, the paper's batches, TRL's precomputation and vLLM on CPU.

    python -m tests.benchmarks.bench_score [--pairs 64] [--data hh_harmless.jsonl.gz] [--repeats 1]
        [--without paper trl vllm accuracy]

SmolLM2-135M-Instruct in bfloat16 on one thread; pairs are HH-RLHF's (ALIGNPOT_SHARED or ../shared), else our demo
pairs. Each peer as it ships and at its best: the paper's batches in the order of the data and sorted by length, vLLM
without and with reading its prefix cache; TRL has no other setting. Before any time counts: the sums of all engines
agree within bfloat16 noise, and ours are the same to the bit in another order, under other token budgets and in other
shards. Then the error of our margins against float32, beside that of the paper's. Times are medians over the repeats,
CPU seconds of all threads. The last line is a JSON object with the ratios.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import Tokens
from pipeline.demo.smollm2 import ensure_smollm2
from pipeline.models.logprobs import LogprobEngine, pair_groups, score_pairs
from pipeline.models.packing import num_packed_tokens
from pipeline.models.prompts import PairTokenizer, TokenizedPair
from tests.benchmarks.scoring_checks import accuracy, check_agreement, check_invariance, num_tokens
from tests.benchmarks.scoring_data import machine, read_rows
from tests.benchmarks.scoring_peers import Timed, by_length, padded_tokens, paper_scores, timed_run
from tests.benchmarks.scoring_trl import run_trl
from tests.benchmarks.scoring_vllm import SETTINGS, has_vllm, run_vllm
from tests.models.pairs import Row

MOST_INVARIANCE_PAIRS = 24


@dataclass(frozen=True, kw_only=True)
class Work:
    """The model and the pairs that every engine scores."""

    directory: Path
    model: Any
    tokenizer: Any
    rows: list[Row]
    pairs: list[TokenizedPair]


def load(data: Path | None, count: int) -> Work:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = ensure_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    name, rows = read_rows(data, count)
    tokenized = [PairTokenizer(tokenizer, Tokens()).tokenize(**row) for row in rows]
    kept = [(row, pair) for row, pair in zip(rows, tokenized, strict=True) if isinstance(pair, TokenizedPair)]
    rows, pairs = [row for row, _ in kept], [pair for _, pair in kept]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    print(f"{len(pairs)} pairs of {name}, {num_tokens(pairs).sum()} response tokens; {json.dumps(machine())}")
    return Work(directory=directory, model=model, tokenizer=tokenizer, rows=rows, pairs=pairs)


def time_here(work: Work, repeats: int, without: Sequence[str]) -> list[Timed]:
    """Ours and the peers of this process, in turns, so that a change of load meets all of them."""
    pairs, model, engine = work.pairs, work.model, LogprobEngine(work.model)
    score_pairs(engine, pairs[:2])
    paper_scores(model, pairs[:2])
    order = by_length(pairs)
    back, ordered = np.argsort(order), [pairs[i] for i in order]
    ours = Timed(name="alignpot", tokens=sum(num_packed_tokens(group) for group in pair_groups(pairs)))
    paper = Timed(name="paper, 4 pairs a batch", tokens=padded_tokens(pairs))
    best = Timed(name="paper, sorted by length", tokens=padded_tokens(ordered))
    trl = Timed(name="TRL precompute, 4 pairs", tokens=padded_tokens(pairs))
    for _ in range(repeats):
        timed_run(ours, lambda: np.stack(score_pairs(engine, pairs)))
        if "paper" not in without:
            timed_run(paper, lambda: paper_scores(model, pairs))
            timed_run(best, lambda: paper_scores(model, ordered)[:, back])
        if "trl" not in without:
            run_trl(model, work.tokenizer, work.rows, trl)
    return _shown([timed for timed in (ours, paper, best, trl) if timed.cpu_s])


def time_vllm(work: Work, repeats: int, ours: Timed) -> list[Timed]:
    """vLLM's settings, each followed by another turn of ours."""
    if not has_vllm():
        print("vLLM is not installed: skipped")
        return []
    found, engine = [], LogprobEngine(work.model)
    for name in SETTINGS:
        result = run_vllm(name, work.directory, work.pairs, repeats)
        title = name.replace("vLLM", f"vLLM {result['version']}")
        found.append(Timed(name=title, sums=result["sums"], cpu_s=result["cpu_s"], wall_s=result["wall_s"]))
        for _ in range(repeats):
            timed_run(ours, lambda: np.stack(score_pairs(engine, work.pairs)))
    print("again, with the turns beside vLLM:")
    ours.show()
    return _shown(found)


def _shown(timed: list[Timed]) -> list[Timed]:
    for each in timed:
        each.show()
    return timed


def margins_error(work: Work, ours: Timed) -> dict[str, float]:
    from transformers import AutoModelForCausalLM

    exact = AutoModelForCausalLM.from_pretrained(work.directory, dtype=torch.float32).eval()
    assert ours.sums is not None
    return accuracy(work.model, exact, ours.sums, work.pairs)


def ratios(timed: Sequence[Timed]) -> dict[str, float]:
    """CPU seconds of each peer over ours."""
    ours, *others = (statistics.median(t.cpu_s) for t in timed)
    return {t.name: round(other / ours, 3) for t, other in zip(timed[1:], others, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark log-probability scoring.")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--data", type=Path, help="hh_harmless.jsonl.gz")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without", nargs="*", choices=["paper", "trl", "vllm", "accuracy"], default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = load(options.data, options.pairs)
    num_ways = check_invariance(work.model, work.pairs[:MOST_INVARIANCE_PAIRS])
    print(f"{'engine':<34}{'CPU s':>9}{'wall s':>9}{'tokens':>10}")
    timed = time_here(work, options.repeats, options.without)
    timed += [] if "vllm" in options.without else time_vllm(work, options.repeats, timed[0])
    for other in timed[1:]:
        check_agreement(other, timed[0], work.pairs)
    errors = {} if "accuracy" in options.without else margins_error(work, timed[0])
    figures = {
        "pairs": len(work.pairs),
        "repeats": options.repeats,
        "cpu_s": {t.name: round(statistics.median(t.cpu_s), 3) for t in timed},
        "ratio_to_alignpot": ratios(timed),
        "margin_error": errors,
        "bitwise_equal_ways": num_ways,
        "machine": machine() | {"threads": torch.get_num_threads()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
