"""What lazy scoring saves: tokens and seconds of the policy beside scoring every row, and what its sample moves.

    python -m tests.benchmarks.bench_lazy [--pairs 300] [--statistics-rows 40] [--fractions 0.05 0.1 0.25 0.4 1.0]
        [--resampled 1000000]

SmolLM2-135M-Instruct scores HH-RLHF's pairs (ALIGNPOT_SHARED or ../shared), else our demo pairs, in the plain loop of
this process, under simpo. Rewards stand in columns; those of HH-RLHF are made up: their margins are normal. Before any
number counts: the scores of a lazy run at fraction 1.0 equal those of an ordinary run to the bit, and each lazy subset
is, id for id and score for score, the one that those scores give. Then come margins like the real ones, a million of
them, without a model: the share of the rows that the same rounds score, with 20,000 rows for statistics; and how many
ids of a subset differ between statistics of all rows and of 20,000. At last, without a model too, the tokens of four
pairs a prompt, whose blocks are shared. The last line is a JSON object with the ratios.
"""

import argparse
import json
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
from pipeline.demo.models import ensure_smollm2
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.margins import implicit_margin
from pipeline.models.packing import BLOCK_ROWS, response_step, sharing_order
from pipeline.models.prompts import PairTokenizer, TokenizedPair
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from tests.benchmarks.lazy_margins import DRAWN, moved_by_the_sample, share_scored
from tests.benchmarks.scoring_data import machine, read_rows
from tests.models.pairs import pair_groups

SCORES = ["id", "policy_logp_chosen", "policy_logp_rejected"]


def written_pairs(folder: Path, count: int) -> tuple[str, Path]:
    """The pairs with ids and rewards, as a file."""
    name, rows = read_rows(None, count)
    margins = np.random.default_rng(0).normal(0.5, 1.0, len(rows))
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for index, (row, margin) in enumerate(zip(rows, margins.tolist(), strict=True)):
            file.write(json.dumps({"id": f"{index:06d}", **row, "score_chosen": margin, "score_rejected": 0.0}) + "\n")
    return name, path


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
    """What scoring takes: seconds, and tokens of the policy."""
    started = time.perf_counter()
    summary, _ = score(*prepare_score(config))
    return {
        "tokens": summary.num_tokens_now,
        "seconds": time.perf_counter() - started,
        "policy_seconds": summary.busy_s["policy"],
    }


def subset(config: Config) -> pa.Table:
    select_subsets(prepare_select(config))
    assert config.output is not None
    return pq.read_table(f"{config.output.path}/parquet", columns=["id", "potential"]).sort_by("id")


def scores_of(config: Config) -> pa.Table:
    return Dataset.open(Place.open(config.scored, config.storage)).table(SCORES).sort_by("id")


def compare_runs(folder: Path, args: argparse.Namespace) -> tuple[dict[str, Any], FloatArray]:
    """Ratios of an ordinary run to lazy ones, by fraction; and the implicit margins."""
    name, source = written_pairs(folder, args.pairs)
    lazy = {"score": {"lazy": True, "statistics_rows": args.statistics_rows}}
    ordinary = config_of(folder, source, "ordinary", 1.0)
    print(f"{args.pairs} pairs of {name}, {args.statistics_rows} of them for statistics; {json.dumps(machine())}")
    timed(config_of(folder, source, "warm-up", 1.0, source={"path": str(source), "id_column": "id", "limit": 8}))
    full = timed(ordinary)
    every = config_of(folder, source, "every", 1.0, **lazy)
    found = {1.0: timed(every)}
    assert scores_of(every).equals(scores_of(ordinary)), "a lazy run gives other scores"
    for fraction in args.fractions:
        config = config_of(folder, source, f"lazy-{fraction}", fraction, **lazy)
        if fraction < 1.0:
            found[fraction] = timed(config)
            expected = config.model_copy(update={
                "scored": every.scored,
                "output": config.output.model_copy(update={"path": str(folder / f"expected-{fraction}")}),
            })  # fmt: skip
            assert subset(config).equals(subset(expected)), f"another subset at {fraction}"
    print("fraction  tokens  of all  seconds  of all")
    for fraction, took in sorted(found.items()):
        shares = took["tokens"] / full["tokens"], took["seconds"] / full["seconds"]
        print(f"{fraction:8}  {took['tokens']:6}  {shares[0]:6.2f}  {took['seconds']:7.1f}  {shares[1]:6.2f}")
    ratios = {
        str(fraction): {key: round(full[key] / took[key], 2) for key in full}
        for fraction, took in sorted(found.items())
    }
    table = Dataset.open(Place.open(ordinary.scored, ordinary.storage)).table()
    return ratios, implicit_margin(table, ordinary.objective)


def tokens_of_four_pairs(count: int) -> dict[str, int]:
    """Tokens that a model runs for four pairs a prompt: without sharing between pairs, as on a CPU, as on a GPU."""
    from transformers import AutoTokenizer

    _, rows = read_rows(None, count)
    tokenizer = PairTokenizer(AutoTokenizer.from_pretrained(ensure_smollm2()), Tokens())
    # Beside its own pair, a prompt gets the answers of the three rows after it.
    four = [
        {**rows[(i + step) % len(rows)], "prompt": row["prompt"]} for step in range(4) for i, row in enumerate(rows)
    ]
    tokenized = [tokenizer.tokenize(**row) for row in four]
    groups = pair_groups([pair for pair in tokenized if isinstance(pair, TokenizedPair)])
    ordered = [groups[i] for i in sharing_order(groups)]
    ways = {"alone": 0, "in blocks": BLOCK_ROWS, "whole": 1}
    return {
        way: sum(segment.num_queries for segment in response_step(ordered, sharing=sharing).segments)
        for way, sharing in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--statistics-rows", type=int, default=40)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.4, 1.0])
    parser.add_argument("--resampled", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ratios, implicit = compare_runs(Path(folder), args)
    at_scale = {}
    for fraction, weight in [*((fraction, 1.0) for fraction in args.fractions), (0.1, 0.25), (0.1, 4.0)]:
        share, num_rounds = share_scored(implicit, args.resampled, fraction, weight)
        at_scale[f"{fraction} w={weight}"] = round(1 / share, 2)
        print(f"{args.resampled} rows, fraction {fraction}, w {weight}: {share:.1%} are scored, in {num_rounds} rounds")
    moved = moved_by_the_sample(implicit, args.resampled)
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
