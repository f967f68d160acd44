"""Pairs a second on one GPU: our engines beside the paper's padded batches and padding-free batches.

    python -m tests.benchmarks.bench_gpu [--cases uf hh long reward] [--pairs 512] [--repeats 3] [--tiny]

Wants a CUDA GPU of 80 GB, and torch, transformers, numpy and pyarrow: no network, no Ray, no weights. The models have
Llama-3-8B's architecture and random normal weights in bfloat16; lengths are lognormal (see scoring_gpu). uf, hh
and long score under policy and reference, both resident; reward gives both rewards of pairs as long as uf's. Peers:

    paper               4 pairs padded together, all logits, as it ships and sorted by length (its best)
    padding-free, HF    transformers with flash attention: sequences end to end by position ids, head on response
                        rows only; needs the flash-attn package, and is left out with a line where there is none
    padding-free, ours  our engine told of every sequence alone: no padding, nothing shared
    alignpot, compiled  our engine with the decoder's layers compiled
    alignpot, fp8       our engine with the decoder's linear layers in 8 bits, and the rank correlation of its margins
                        with those in bfloat16: random weights say little about how a trained model's rank
    classifier          AutoModelForSequenceClassification, 8 dialogues padded together, as it ships and sorted

Gate: mean log-probabilities, or rewards, of all engines agree on 16 pairs. MFU is of useful work, the same for every
engine: what scoring takes with nothing computed twice (scoring_gpu.flops) a second / the GPU's dense bfloat16 peak by
its data sheet. `--tiny` runs the same code with a tiny model, on CPU too, to try it: its times mean nothing. The last
line is a JSON object.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.benchmarks.scoring_gpu import CASES, LLAMA_3_8B, PEAK_TFLOPS, TINY, Pair, flops, pairs_of, random_model
from tests.benchmarks.scoring_peers import by_length, paper_scores

if importlib.util.find_spec("pydantic") is None:
    # The engines name two data classes of a module that also reads configs, and so needs pydantic.
    prompts: Any = ModuleType("pipeline.models.prompts")
    prompts.TokenizedPair = prompts.TokenizedDialogues = SimpleNamespace
    sys.modules[prompts.__name__] = prompts

from pipeline.metrics.ranks import spearman
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.rewards import ClassifierEngine

GATE_PAIRS = 16
TOLERANCE_LOGP, TOLERANCE_REWARD = 0.05, 0.15
CLASSIFIER_BATCH = 8

Score = Callable[[Sequence[Pair]], np.ndarray]  # (2, pairs)


def of_engine(engine: LogprobEngine | ClassifierEngine, *, shared: bool = True) -> Score:
    """Our engine, on groups of two or on every sequence alone."""

    def score(pairs: Sequence[Pair]) -> np.ndarray:
        groups = [pair.group for pair in pairs]
        if not shared:
            groups = [[completion] for group in groups for completion in group]
        found = engine.score(groups)
        values = found.sum_logp if isinstance(engine, LogprobEngine) else found.reward
        return values.reshape(-1, 2).T

    return score


def in_length_order(score: Score) -> Score:
    def ordered(pairs: Sequence[Pair]) -> np.ndarray:
        order = by_length(pairs)
        return score([pairs[i] for i in order])[:, np.argsort(order)]

    return ordered


def padding_free(model: Any, token_budget: int) -> Score:
    """Transformers' own padding-free forward: position ids that begin anew tell flash attention the sequences."""

    @torch.inference_mode()
    def score(pairs: Sequence[Pair]) -> np.ndarray:
        before = model.config._attn_implementation
        model.set_attn_implementation("flash_attention_2")
        try:
            return packed(pairs)
        finally:
            model.set_attn_implementation(before)

    def packed(pairs: Sequence[Pair]) -> np.ndarray:
        sequences = [completion for pair in pairs for completion in pair.group]
        sums, begin = [], 0
        while begin < len(sequences):
            end, size = begin, 0
            while end < len(sequences) and (end == begin or size + len(sequences[end].ids) <= token_budget):
                size += len(sequences[end].ids)
                end += 1
            sums += _packed_sums(model, sequences[begin:end])
            begin = end
        return np.asarray(sums).reshape(-1, 2).T

    return score


def _packed_sums(model: Any, sequences: Sequence[Any]) -> list[float]:
    device = model.device
    ids = torch.as_tensor(np.concatenate([s.ids for s in sequences]), dtype=torch.int64, device=device)
    positions = torch.cat([torch.arange(len(s.ids), device=device) for s in sequences])
    offsets = np.cumsum([0, *(len(s.ids) for s in sequences)])
    targets = np.concatenate(
        [np.arange(at + s.start, at + len(s.ids)) for at, s in zip(offsets, sequences, strict=False)]
    )
    owners = np.repeat(np.arange(len(sequences)), [len(s.ids) - s.start for s in sequences])
    rows = torch.as_tensor(targets - 1, device=device)
    logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=rows).logits[0]
    wanted = ids[rows + 1][:, None]
    chunks = zip(logits.split(2048), wanted.split(2048), strict=True)
    logp = [rows.gather(1, t)[:, 0].float() - torch.logsumexp(rows.float(), 1) for rows, t in chunks]
    return np.bincount(owners, weights=torch.cat(logp).double().cpu().numpy(), minlength=len(sequences)).tolist()


def classifier(model: Any) -> Score:
    @torch.inference_mode()
    def score(pairs: Sequence[Pair]) -> np.ndarray:
        dialogues = [completion.ids for pair in pairs for completion in pair.group]
        found = []
        for begin in range(0, len(dialogues), CLASSIFIER_BATCH):
            batch = dialogues[begin : begin + CLASSIFIER_BATCH]
            ids = torch.full((len(batch), max(map(len, batch))), model.config.pad_token_id)
            for row, tokens in enumerate(batch):
                ids[row, : len(tokens)] = torch.as_tensor(tokens)
            mask = (ids != model.config.pad_token_id).long()
            ids, mask = ids.to(model.device), mask.to(model.device)
            found.append(model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float().cpu())
        return torch.cat(found).numpy().reshape(-1, 2).T

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


def check(name: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    difference = np.abs(found - expected)
    worst = float(difference.max())
    print(f"gate {name}: differs by {worst:.4f} at most", flush=True)
    # The paper's sums are themselves bfloat16, and random models give large ones.
    if not np.all(difference <= tolerance + 2**-8 * np.abs(expected)):
        sys.exit(f"{name} and our engine disagree by {worst:.4f}")


def logp_engines(models: Sequence[Any], budget: int) -> tuple[str, dict[str, list[Score]]]:
    """Scores under every model, by engine; ours first."""
    engines = [LogprobEngine(model, token_budget=budget) for model in models]
    found = {
        "alignpot": [of_engine(engine) for engine in engines],
        "padding-free, ours": [of_engine(engine, shared=False) for engine in engines],
        "paper": [lambda pairs, m=model: paper_scores(m, pairs) for model in models],
        "paper, sorted": [in_length_order(lambda pairs, m=model: paper_scores(m, pairs)) for model in models],
    }
    if importlib.util.find_spec("flash_attn") is None:
        print("flash-attn is not installed: padding-free, HF is left out")
    elif torch.cuda.is_available():
        found["padding-free, HF"] = [padding_free(model, budget) for model in models]
    return engines[0].kernel, found


def reward_engines(model: Any, budget: int) -> tuple[str, dict[str, list[Score]]]:
    engine = ClassifierEngine(model, token_budget=budget)
    found = {
        "alignpot": of_engine(engine),
        "padding-free, ours": of_engine(engine, shared=False),
        "classifier": classifier(model),
        "classifier, sorted": in_length_order(classifier(model)),
    }
    return engine.kernel, {name: [score] for name, score in found.items()}


def measure(
    engines: dict[str, list[Score]], pairs: Sequence[Pair], work: float, options: argparse.Namespace, *, head: bool
) -> dict[str, Any]:
    """Pairs a second and MFU of every engine, and ours as a ratio to each."""
    some = pairs[:GATE_PAIRS]
    lengths = np.array([[len(c.ids) - c.start for c in p.group] for p in some]).T if head else 1.0
    expected = engines["alignpot"][0](some) / lengths
    for name, scores in engines.items():
        if name != "alignpot":
            check(name, scores[0](some) / lengths, expected, TOLERANCE_LOGP if head else TOLERANCE_REWARD)
    rates, tflops = {}, {}
    for name, scores in engines.items():
        spent = sum(seconds(score, pairs, options.repeats) for score in scores)
        rates[name] = len(pairs) / spent
        tflops[name] = 1e-12 * work * len(scores) / spent
        print(f"{name:<22}{rates[name]:>10.2f} pairs/s{tflops[name]:>10.4g} useful TFLOP/s", flush=True)
    ours = rates["alignpot"]
    return {
        "pairs_per_s": {name: round(rate, 3) for name, rate in rates.items()},
        "mfu": {name: round(rate / options.peak_tflops, 4) for name, rate in tflops.items()}
        if options.peak_tflops
        else None,
        "ratio": {name: round(ours / rate, 3) for name, rate in rates.items() if name != "alignpot"},
    }


def measure_changed(
    change: str,
    models: Sequence[Any],
    cases: dict[str, Sequence[Pair]],
    figures: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """Adds what `compiled` or `fp8` does in each case, after all else: it changes the models in place."""
    own = {
        name: of_engine(LogprobEngine(models[0], token_budget=options.token_budget))(pairs)
        for name, pairs in cases.items()
    }
    changed = [of_engine(LogprobEngine(model, token_budget=options.token_budget, **{change: True})) for model in models]
    for name, pairs in cases.items():
        rate = len(pairs) / sum(seconds(score, pairs, options.repeats) for score in changed)
        correlation = spearman(own[name][0] - own[name][1], np.subtract(*changed[0](pairs)))
        ratio = rate / figures[name]["pairs_per_s"]["alignpot"]
        print(
            f"{name}, {change} {rate:>10.2f} pairs/s, {ratio:.3f} of as it was, rank correlation {correlation:.4f}",
            flush=True,
        )
        figures[name][change] = {
            "pairs_per_s": round(rate, 3),
            "to_plain": round(ratio, 3),
            "rank_correlation": round(correlation, 4),
        }


def run_cases(options: argparse.Namespace, device: str) -> dict[str, Any]:
    shape, scale = (TINY, 0.1) if options.tiny else (LLAMA_3_8B, 1.0)
    figures: dict[str, Any] = {}
    wanted = {name: lengths for name, lengths in CASES.items() if name in options.cases}
    if wanted:
        models = [random_model(shape, seed, device) for seed in (1, 2)]
        kernel, engines = logp_engines(models, options.token_budget)
        cases = {
            name: pairs_of(lengths.scaled(scale), options.pairs, shape["vocab_size"])
            for name, lengths in wanted.items()
        }
        for name, pairs in cases.items():
            print(f"{name}, policy and reference, {kernel} kernel", flush=True)
            work = flops(models[0].config, pairs, head=True)
            figures[name] = {"kernel": kernel, **measure(engines, pairs, work, options, head=True)}
        for change in ("compiled", "fp8"):
            measure_changed(change, models, cases, figures, options)
        del models, engines
        if device == "cuda":
            torch.cuda.empty_cache()
    if "reward" in options.cases:
        model = random_model(shape, 3, device, classifier=True)
        kernel, engines = reward_engines(model, options.token_budget)
        print(f"reward model, {kernel} kernel", flush=True)
        pairs = pairs_of(CASES["uf"].scaled(scale), options.pairs, shape["vocab_size"])
        work = flops(model.config, pairs, head=False)
        figures["reward"] = {"kernel": kernel, **measure(engines, pairs, work, options, head=False)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark scoring on one GPU.")
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "reward"], default=[*CASES, "reward"])
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--token-budget", type=int, default=16384)
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
