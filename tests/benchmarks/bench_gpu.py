"""Pairs a second on one GPU: our engines beside the paper's padded batches and padding-free batches.

    python -m tests.benchmarks.bench_gpu [--cases uf hh long reward] [--pairs 512] [--repeats 1] [--tiny]

Wants a CUDA GPU of 80 GB, and torch, transformers, numpy and pyarrow: no network, no Ray, no weights. The models have
Llama-3-8B's architecture and random normal weights in bfloat16; lengths are lognormal (see scoring_gpu). uf, hh
and long score under policy and reference, both resident; reward gives both rewards of pairs as long as uf's. Peers:

    paper               4 pairs padded together, all logits, as it ships; in batches of the size that is fastest here;
                        and the same sorted by length (its best)
    padding-free, HF    transformers with flash attention: sequences end to end by position ids, head on response
                        rows only (see scoring_gpu_peers)
    padding-free, ours  our engine told of every sequence alone: no padding, nothing shared
    classifier          AutoModelForSequenceClassification, 8 dialogues padded together, as it ships; and the same

Ours runs as it is, with compiled layers, and compiled with the linear layers in 8 bits; the latter with the rank
correlation of its margins, of which random weights say little. Gate: mean log-probabilities, or rewards, of all engines
agree on 16 pairs. MFU is of useful work, the same for every engine: what scoring takes with nothing computed twice
(scoring_gpu.flops) a second / the GPU's dense bfloat16 peak by its data sheet; it is left out for 8 bits. `--tiny` runs
the same code with a tiny model, on CPU too, to try it: its times mean nothing. The last line is a JSON object.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.benchmarks.scoring_gpu import CASES, LLAMA_3_8B, PEAK_TFLOPS, TINY, Pair, flops, pairs_of, random_model
from tests.benchmarks.scoring_gpu_peers import BATCHES, Score, classifier, in_length_order, padding_free, paper

if importlib.util.find_spec("pydantic") is None:
    # The engines name a class and two functions of modules that need pydantic.
    config: Any = ModuleType("pipeline.config")
    config.TorchModel = SimpleNamespace
    loading: Any = ModuleType("pipeline.models.loading")
    loading.load_causal_lm = loading.load_classifier = None
    sys.modules |= {module.__name__: module for module in (config, loading)}

from pipeline.models.logprobs import LogprobEngine
from pipeline.models.rewards import ClassifierEngine

GATE_PAIRS, TRIAL_PAIRS = 16, 32
TOLERANCE_LOGP, TOLERANCE_REWARD = 0.05, 0.15
OURS = {"alignpot": {}, "alignpot, compiled": {"compiled": True}, "alignpot, fp8": {"compiled": True, "fp8": True}}

Engine = LogprobEngine | ClassifierEngine


class Case:
    """Pairs of one kind under some models, and what was measured on them."""

    def __init__(self, name: str, models: Sequence[Any], options: argparse.Namespace, *, head: bool) -> None:
        scale = 0.1 if options.tiny else 1.0
        vocab_size = models[0].config.vocab_size
        self.name, self.models, self.options, self.head = name, models, options, head
        self.pairs = pairs_of(CASES.get(name, CASES["uf"]).scaled(scale), options.pairs, vocab_size)
        self.work = len(models) * flops(models[0].config, self.pairs, head=head)
        self.expected = np.empty((2, 0))
        self.pairs_per_s: dict[str, float] = {}
        self.settings: dict[str, int] = {}
        self.fp8: dict[str, float] = {}

    def gate(self, name: str, score: Score) -> None:
        """The first engine's numbers are those that the others must give."""
        found = score(self.pairs[:GATE_PAIRS])
        lengths = np.array([[len(c.ids) - c.start for c in p.group] for p in self.pairs[:GATE_PAIRS]]).T
        found = found / lengths if self.head else found
        if not self.expected.size:
            self.expected = found
        difference = np.abs(found - self.expected)
        print(f"{self.name}: {name} differs by {difference.max():.4f} at most", flush=True)
        # The paper's sums are themselves bfloat16, and random models give large ones.
        tolerance = TOLERANCE_LOGP if self.head else TOLERANCE_REWARD
        if not np.all(difference <= tolerance + 2**-8 * np.abs(self.expected)):
            sys.exit(f"{self.name}: {name} and our engine disagree by {difference.max():.4f}")

    def time(self, name: str, scores: Sequence[Score], repeats: int) -> None:
        """Pairs a second of an engine, of which there is one score a model, after its gate."""
        if name != "alignpot, fp8":
            self.gate(name, scores[0])
        spent = sum(seconds(score, self.pairs, repeats) for score in scores)
        self.pairs_per_s[name] = len(self.pairs) / spent
        print(f"{self.name}: {name:<22}{self.pairs_per_s[name]:>10.2f} pairs/s {self.mfu(name)}", flush=True)

    def mfu(self, name: str) -> float | None:
        """Useful FLOP/s over the GPU's peak."""
        if self.options.peak_tflops is None:
            return None
        flops_per_pair = self.work / len(self.pairs)
        return round(1e-12 * self.pairs_per_s[name] * flops_per_pair / self.options.peak_tflops, 4)

    def figures(self) -> dict[str, Any]:
        """What was measured, and ours as ratios to the peers."""
        rates = self.pairs_per_s
        peers = [name for name in rates if name not in OURS]
        return {
            "pairs_per_s": {name: round(rate, 3) for name, rate in rates.items()},
            "mfu": {name: self.mfu(name) for name in rates if "fp8" not in name},
            "ratio": {
                own: {peer: round(rates[own] / rates[peer], 3) for peer in peers} for own in OURS if own in rates
            },
            "best_batch": self.settings,
            "fp8": self.fp8,
        }


def of_engine(engine: Engine, *, shared: bool = True) -> Score:
    """Our engine, on groups of two or on every sequence alone."""

    def score(pairs: Sequence[Pair]) -> np.ndarray:
        groups = [pair.group for pair in pairs]
        if not shared:
            groups = [[completion] for group in groups for completion in group]
        found = engine.score(groups)
        values = found.values
        return values.reshape(-1, 2).T

    return score


def seconds(score: Score, pairs: Sequence[Pair], repeats: int) -> float:
    """Median wall seconds, after one pass over some of the pairs."""
    score(pairs[:GATE_PAIRS])
    spent = []
    for _ in range(repeats):
        _wait()
        started = time.perf_counter()
        score(pairs)
        _wait()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def best_batch(make: Callable[[int], Score], pairs: Sequence[Pair], sizes: Sequence[int]) -> int:
    """The size of batch that is fastest on some pairs; one that does not fit memory is none."""

    def spent(size: int) -> float:
        try:
            return seconds(make(size), pairs[:TRIAL_PAIRS], 1)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return float("inf")

    return min(sizes, key=spent)


def peers_of(case: Case) -> Iterator[tuple[str, list[Score]]]:
    """What ours is compared with, on all models of a case."""
    budget = case.options.token_budget
    if case.head:
        if torch.cuda.is_available():
            yield "padding-free, HF", [padding_free(model, budget) for model in case.models]
        kind, shipped, sizes = "paper", paper, BATCHES
    else:
        kind, shipped, sizes = "classifier", classifier, [2 * size for size in BATCHES]
    yield kind, [shipped(model) for model in case.models]
    for name, ordered in (("best batch", lambda score: score), ("best batch, sorted", in_length_order)):
        best = best_batch(lambda size, ordered=ordered: ordered(shipped(case.models[0], size)), case.pairs, sizes)
        case.settings[f"{kind}, {name}"] = best
        print(f"{case.name}: {kind}, {name}: {best} together", flush=True)
        yield f"{kind}, {name}", [ordered(shipped(model, best)) for model in case.models]


def run_models(cases: Sequence[Case]) -> None:
    """Ours and the peers in every case; changes of the models in place come last."""
    options, models = cases[0].options, cases[0].models
    make = LogprobEngine if cases[0].head else ClassifierEngine
    before: dict[str, np.ndarray] = {}
    for own, changes in OURS.items():
        engines = [make(model, options.token_budget, **changes) for model in models]
        print(f"{own}: {engines[0].kernel} kernel", flush=True)
        for case in cases:
            case.time(own, [of_engine(engine) for engine in engines], options.own_repeats)
            margins = np.subtract(*of_engine(engines[0])(case.pairs))
            if "fp8" in changes:
                case.fp8["rank_correlation"] = round(rank_correlation(before[case.name], margins), 4)
            elif not changes:
                before[case.name] = margins
                alone = [of_engine(engine, shared=False) for engine in engines]
                case.time("padding-free, ours", alone, options.repeats)
                for peer, scores in peers_of(case):
                    case.time(peer, scores, options.repeats)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, of values that are all different: the product's own wants packages that a GPU machine may lack."""
    return float(np.corrcoef(first.argsort().argsort(), second.argsort().argsort())[0, 1])


def run_cases(options: argparse.Namespace, device: str) -> dict[str, Any]:
    shape = TINY if options.tiny else LLAMA_3_8B
    figures: dict[str, Any] = {}
    for head, seeds in ((True, (1, 2)), (False, (3,))):
        names = [name for name in options.cases if (name != "reward") == head]
        if names:
            models = [random_model(shape, seed, device, classifier=not head) for seed in seeds]
            cases = [Case(name, models, options, head=head) for name in names]
            run_models(cases)
            figures |= {case.name: case.figures() for case in cases}
            print(json.dumps(figures), flush=True)
            del models, cases
            if device == "cuda":
                torch.cuda.empty_cache()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark scoring on one GPU.")
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "reward"], default=[*CASES, "reward"])
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1, help="runs of a peer; the median counts")
    parser.add_argument("--own-repeats", type=int, default=3, help="the same of ours")
    parser.add_argument("--token-budget", type=int, default=32768)
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16; left out, by the GPU's name")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    if device == "cpu" and not options.tiny:
        sys.exit("bench_gpu needs a CUDA GPU; --tiny tries the same code on CPU.")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    if options.peak_tflops is None:
        options.peak_tflops = next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
    versions = {module: importlib.import_module(module).__version__ for module in ("torch", "transformers")}
    machine = {"device": name, "peak_tflops": options.peak_tflops, **versions}
    print(json.dumps(machine))
    figures = run_cases(options, device)
    memory = round(torch.cuda.max_memory_allocated() / 2**30, 1) if device == "cuda" else None
    print(json.dumps({"cases": figures, "pairs": options.pairs, "peak_memory_gib": memory, "machine": machine}))


if __name__ == "__main__":
    main()
