"""What lazy scoring saves: tokens and seconds of the policy beside scoring every row, and what its sample moves.

    python -m tests.benchmarks.bench_lazy [--pairs 300] [--max-chars 300] [--statistics-rows 24]
        [--fractions 0.05 0.1 0.25 0.4 1.0] [--classifier 0.1] [--replay] [--judged 40] [--resampled 1000000]

SmolLM2-135M-Instruct scores HH-RLHF's pairs (ALIGNPOT_SHARED or ../shared), else our demo pairs, in the plain loop of
this process, under simpo. Rewards stand in columns; those of HH-RLHF are made up: their margins are normal. Then the
demo's reward model gives them, which scores every row. Before any number counts: the scores of a lazy run at fraction
1.0 equal those of an ordinary run to the bit, and each lazy subset is, id for id and score for score, the one that
those scores give. Then come margins like the real ones, a million of them, without a model: the share of the rows that
the same rounds score, with 20,000 rows for statistics; and how many ids of a subset differ between statistics of all
rows and of 20,000, also with both margins of one pair (of the reward model, and, where AlpacaEval is at hand too, of
`--judged` pairs of answers that a judge rewarded). At last, without a model too, the tokens of four pairs a prompt,
shuffled, whose blocks are shared. The last line is a JSON object with the ratios.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Config, Tokens, parse_config
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.demo.models import build_reward_model, ensure_smollm2
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.margins import explicit_margin, implicit_margin
from pipeline.models.packing import BLOCK_ROWS, num_step_tokens, sharing_order
from pipeline.models.prompts import PairTokenizer, TokenizedPair
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from tests.benchmarks.lazy_margins import DRAWN, margins_like, moved_by_the_sample, share_scored
from tests.benchmarks.scoring_data import machine, read_rows, shared_data
from tests.models.pairs import Row, pair_groups

JUDGED = shared_data() / "alpaca_eval_onpolicy.parquet"
TOKENS = ["num_tokens_prompt", "num_tokens_chosen", "num_tokens_rejected"]
SCORES = ["id", "policy_logp_chosen", "policy_logp_rejected"]


def short_rows(count: int, max_chars: int) -> tuple[str, list[Row]]:
    """The first pairs whose texts are no longer than that together."""
    name, rows = read_rows(None, 10**9)
    sizes = [sum(len(turn["content"]) for turns in row.values() for turn in turns) for row in rows]
    return name, [row for row, size in zip(rows, sizes, strict=True) if size <= max_chars][:count]


def made_up(count: int) -> FloatArray:
    """Explicit margins."""
    return np.random.default_rng(0).normal(0.5, 1.0, count)


def written_pairs(folder: Path, rows: list[Row]) -> Path:
    """The pairs with ids and rewards, as a file."""
    margins = made_up(len(rows))
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for index, (row, margin) in enumerate(zip(rows, margins.tolist(), strict=True)):
            file.write(json.dumps({"id": f"{index:06d}", **row, "score_chosen": margin, "score_rejected": 0.0}) + "\n")
    return path


def config_of(folder: Path, path: Path, name: str, fraction: float, **sections: Any) -> Config:
    return parse_config({
        "source": {"path": str(path), "id_column": "id"},
        "policy": {"model": str(ensure_smollm2()), "dtype": "bfloat16", "num_gpus": 0},
        "reward": {"backend": "columns"},
        "scored": str(folder / name / "scored"),
        "select": {"fraction": fraction},
        "output": {"path": str(folder / name / f"subset-{fraction}"), "formats": ["parquet"]},
        "run": {"engine": "plain", "shard_rows": 64},
        **sections,
    })  # fmt: skip


def timed(config: Config) -> dict[str, float]:
    """What scoring takes: tokens of the policy, seconds, those outside of models, and CPU seconds."""
    started, cpu = time.perf_counter(), time.process_time()
    summary, _ = score(*prepare_score(config))
    seconds = time.perf_counter() - started
    took = {
        "tokens": summary.num_tokens_now,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "seconds_outside": seconds - summary.busy_s["policy"] - summary.busy_s.get("reward", 0.0),
    }
    print(f"{config.scored} {took} {summary.busy_s}; load {machine()['load']}", file=sys.stderr, flush=True)
    return took


def subset(config: Config) -> pa.Table:
    select_subsets(prepare_select(config))
    assert config.output is not None
    return pq.read_table(f"{config.output.path}/parquet", columns=["id", "potential"]).sort_by("id")


def scores_of(config: Config) -> pa.Table:
    return Dataset.open(Place.open(config.scored, config.storage)).table(SCORES).sort_by("id")


def compare_runs(
    folder: Path, source: Path, args: argparse.Namespace, fractions: list[float], **sections: Any
) -> tuple[dict[str, Any], FloatArray, FloatArray]:
    """Ratios of an ordinary run to lazy ones, by fraction; and the explicit and implicit margins."""
    lazy = {"score": {"lazy": True, "statistics_rows": args.statistics_rows}, **sections}
    ordinary = config_of(folder, source, "ordinary", 1.0, **sections)
    few = {"source": {"path": str(source), "id_column": "id", "limit": 8}}
    timed(config_of(folder, source, "warm-up", 1.0, **few, **sections))
    full, found = timed(ordinary), {}
    for fraction in sorted(fractions, reverse=True):
        config = config_of(folder, source, f"lazy-{fraction}", fraction, **lazy)
        found[fraction] = timed(config)
        if fraction == 1.0:
            every = config
            assert scores_of(every).equals(scores_of(ordinary)), "a lazy run gives other scores"
        elif 1.0 in found:
            output = config.output.model_copy(update={"path": str(folder / f"expected-{fraction}")})
            expected = config.model_copy(update={"scored": every.scored, "output": output})
            assert subset(config).equals(subset(expected)), f"another subset at {fraction}"
    print("fraction  tokens  of all  seconds  of all  CPU s  of all  outside of models, s")
    for fraction, took in [("all", full), *sorted(found.items())]:
        shares = {key: took[key] / full[key] for key in full}
        print(
            f"{fraction:>8}  {took['tokens']:6}  {shares['tokens']:6.2f}  {took['seconds']:7.1f}  "
            f"{shares['seconds']:6.2f}  {took['cpu_seconds']:5.1f}  {shares['cpu_seconds']:6.2f}  "
            f"{took['seconds_outside']:.2f}",
            flush=True,
        )
    ratios = {
        str(fraction): {key: round(full[key] / took[key], 2) for key in full}
        for fraction, took in sorted(found.items())
    }
    table = Dataset.open(Place.open(ordinary.scored, ordinary.storage)).table()
    return ratios, explicit_margin(table, "signed"), implicit_margin(table, ordinary.objective)


def replayed(config: Config, args: argparse.Namespace) -> tuple[dict[str, Any], FloatArray, FloatArray]:
    """As `compare_runs`, with one run of the models: the rounds go over its margins. Ratios are those of tokens."""
    timed(config)
    table = Dataset.open(Place.open(config.scored, config.storage)).table()
    num_tokens = sum(table[name].to_numpy() for name in TOKENS)
    implicit, of_model = implicit_margin(table, config.objective), explicit_margin(table, "signed")
    ratios: dict[str, Any] = {}
    for name, explicit in (("columns", made_up(implicit.size)), ("classifier", of_model)):
        shares = {
            fraction: share_scored(
                explicit, implicit, fraction, num_tokens=num_tokens, statistics_rows=args.statistics_rows
            )
            for fraction in args.fractions
        }
        ratios[name] = {str(fraction): (round(1 / share, 2), rounds) for fraction, (share, rounds) in shares.items()}
    print(f"tokens of the policy, fewer by, and rounds: {ratios}", flush=True)
    return ratios, of_model, implicit


def judged_margins(folder: Path, count: int) -> tuple[FloatArray, FloatArray]:
    """Both margins of answers to AlpacaEval that a judge rewarded: one pair a prompt, of short texts."""
    table = pq.read_table(JUDGED, columns=["prompt", "all_generated_responses", "all_rm_scores"])
    rows, prompts = [], set()
    for row in table.to_pylist():
        texts, rewards = row["all_generated_responses"], np.asarray(row["all_rm_scores"], dtype=float)
        best, worst = int(rewards.argmax()), int(rewards.argmin())
        size = len(row["prompt"]) + len(texts[best]) + len(texts[worst])
        if size <= 1200 and row["prompt"] not in prompts and len(rows) < count:
            prompts.add(row["prompt"])
            pair = {"id": str(len(rows)), "prompt": row["prompt"], "chosen": texts[best], "rejected": texts[worst]}
            rows.append({**pair, "score_chosen": rewards[best], "score_rejected": rewards[worst]})
    source = folder / "judged.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(folder, source, "judged", 1.0)
    score(*prepare_score(config))
    table = Dataset.open(Place.open(config.scored, config.storage)).table()
    return explicit_margin(table, "signed"), implicit_margin(table, config.objective)


def tokens_of_four_pairs(count: int) -> dict[str, int]:
    """Tokens that a model runs for four pairs a prompt: without sharing between pairs, as on a CPU, as on a GPU."""
    from transformers import AutoTokenizer

    _, rows = read_rows(None, count)
    tokenizer = PairTokenizer(AutoTokenizer.from_pretrained(ensure_smollm2()), Tokens())
    # Beside its own pair, a prompt gets the answers of the three rows after it. Then they are shuffled.
    four = [
        {**rows[(i + step) % len(rows)], "prompt": row["prompt"]} for step in range(4) for i, row in enumerate(rows)
    ]
    four = [four[i] for i in np.random.default_rng(0).permutation(len(four))]
    tokenized = [tokenizer.tokenize(**row) for row in four]
    groups = pair_groups([pair for pair in tokenized if isinstance(pair, TokenizedPair)])

    def tokens(order: list[int], sharing: int) -> int:
        shards = [[groups[i] for i in order[first : first + 256]] for first in range(0, len(order), 256)]
        return sum(num_step_tokens([shard[i] for i in sharing_order(shard)], sharing) for shard in shards)

    apart = [*range(len(groups))]
    together = sharing_order(groups)  # as run.group_prompts has them
    return {
        "alone": tokens(apart, 0),
        "shuffled, in blocks": tokens(apart, BLOCK_ROWS),
        "grouped, in blocks": tokens(together, BLOCK_ROWS),
        "grouped, whole": tokens(together, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--statistics-rows", type=int, default=24)
    parser.add_argument("--max-chars", type=int, default=300)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.4, 1.0])
    parser.add_argument("--classifier", type=float, nargs="*", default=[0.1])
    parser.add_argument("--replay", action="store_true", help="run the models once, and only the rounds over margins")
    parser.add_argument("--judged", type=int, default=40)
    parser.add_argument("--resampled", type=int, default=1_000_000)
    args = parser.parse_args()
    name, rows = short_rows(args.pairs, args.max_chars)
    print(f"{len(rows)} pairs of {name}, {args.statistics_rows} of them for statistics; {json.dumps(machine())}")
    real = {}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        source = written_pairs(folder, rows)
        model = build_reward_model(ensure_smollm2(), ensure_smollm2().parent)
        reward = {"backend": "classifier", "model": str(model), "dtype": "bfloat16", "num_gpus": 0}
        if args.replay:
            config = config_of(folder, source, "ordinary", 1.0, reward=reward)
            ratios, *real["reward model"] = replayed(config, args)
            implicit = real["reward model"][1]
        else:
            ratios, _, implicit = compare_runs(folder, source, args, args.fractions)
        if args.classifier and not args.replay:
            found = compare_runs(folder / "classifier", source, args, args.classifier, reward=reward)
            ratios["classifier"], real["reward model"] = found[0], found[1:]
        if args.judged and JUDGED.exists():
            real["judge"] = judged_margins(folder, args.judged)
    at_scale = {}
    for fraction, weight in [*((fraction, 1.0) for fraction in args.fractions), (0.1, 0.25), (0.1, 4.0)]:
        share, num_rounds = share_scored(*margins_like(implicit, args.resampled, seed=0), fraction, weight)
        at_scale[f"{fraction} w={weight}"] = round(1 / share, 2)
        print(f"{args.resampled} rows, fraction {fraction}, w {weight}: {share:.1%} are scored, in {num_rounds} rounds")
    moved = {
        name: moved_by_the_sample(*margins, args.resampled)
        for name, margins in {"made-up rewards": (made_up(implicit.size), implicit), **real}.items()
    }
    print(f"share of the ids of a subset that statistics of {DRAWN} rows move: {moved}")
    shared = tokens_of_four_pairs(args.pairs)
    print(f"tokens of four pairs a prompt, {args.pairs} prompts: {shared}")
    print(
        json.dumps(
            {"saved": ratios, "rows_at_scale": at_scale, "moved": moved, "shared": shared, "load": machine()["load"]}
        )
    )


if __name__ == "__main__":
    main()
