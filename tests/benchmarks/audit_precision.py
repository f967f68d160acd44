"""How many planted wrong labels `alignpot audit` finds: `python -m tests.benchmarks.audit_precision [--scored DEMO]`.

5% of the labels are turned round. Precision at the flip count is the share of planted ones among as many pairs, those
most likely mislabelled. Beside it stand the pairs of the lowest reward margin, those of the lowest implicit margin, and
chance. The worlds are those of `make study`. They draw wrong labels themselves, which are not counted as found; so the
pairs of the lowest true margin, which no rule knows, stand there too. DEMO is the scored dataset of `alignpot demo
--pairs 307`. The last line is a JSON object.
"""

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.demo_data.fit_reward import split
from jobs.demo_data.sample_pairs import read_pairs
from jobs.study.train import Training, loss_of, scored_table, train
from jobs.study.trials import OBJECTIVES
from jobs.study.worlds import WORLDS, draw_pairs, draw_world
from pipeline import api, schema
from pipeline.config import Objective, Storage
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import DataError
from pipeline.metrics.margins import explicit_margin, implicit_margin
from pipeline.selection.labels import swap_sides

SHARE = 0.05
RULES = ("audit", "reward margin", "implicit margin", "chance", "true margin")
Rng = np.random.Generator


def precision(
    table: pa.Table, objective: Objective, rng: Rng, true_margin: np.ndarray | None = None
) -> dict[str, float]:
    """Of each rule, after some labels were turned round. Where the audit refuses, it is counted as chance."""
    num_rows = table.num_rows
    num = max(1, round(SHARE * num_rows))
    wrong = np.zeros(num_rows, dtype=np.bool_)
    wrong[rng.choice(num_rows, num, replace=False)] = True
    flipped = swap_sides(table, wrong)
    margins = {"reward margin": explicit_margin(flipped), "implicit margin": implicit_margin(flipped, objective)}
    if true_margin is not None:
        margins["true margin"] = np.where(wrong, -true_margin, true_margin)
    found = {name: wrong[np.argsort(values, kind="stable")][:num].mean() for name, values in margins.items()}
    try:
        listed = api.audit(flipped, objective=objective.model_dump(exclude_none=True), above=0.0).to_arrow()
        first = pc.index_in(listed.column(schema.ID).slice(0, num), flipped.column(schema.ID)).to_numpy()
        found["audit"] = wrong[first].mean()
    except DataError:
        found["audit"] = num / num_rows
    return {**{name: float(value) for name, value in found.items()}, "chance": num / num_rows}


def of_world(name: str, objective: Objective, seed: int, num_pairs: int) -> dict[str, float]:
    """Of one world, whose policy has been trained a little on other pairs."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    world = draw_world(WORLDS[name], rng)
    settings, reference = world.settings, world.first_policy
    others = replace(world, settings=replace(settings, candidates=0))
    warm = draw_pairs(others, reference, 1000, rng, settings.warm_topics)
    training = Training(num_steps=settings.warm_steps)
    policy = train(reference, loss_of(warm, objective, reference), [np.arange(1000)], training, seed)[0]
    pairs = draw_pairs(world, policy, num_pairs, rng)
    return precision(scored_table(pairs, policy, reference), objective, rng, pairs.margin_true)


def of_demo(scored: str, num_draws: int) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Of the demo's pairs, all of them and those that its reward model was not fitted on."""
    dataset = Dataset.open(Place.open(scored, Storage()))
    table = dataset.table()
    objective = Objective(**dataset.manifest.config["objective"])
    pairs = read_pairs()
    held_out = pa.array([pairs[i]["id"] for i in split(pairs, 0)[1]])
    for name, rows in (
        ("demo pairs", table),
        ("demo pairs held out from its reward", table.filter(pc.is_in(table.column(schema.ID), held_out))),
    ):
        draws = [precision(rows, objective, np.random.default_rng([seed, 7])) for seed in range(num_draws)]
        yield f"{name} ({rows.num_rows}, {objective.name})", draws


def main() -> None:
    """Print a row for each world and objective, and for the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scored", help="scored dataset of `alignpot demo --pairs 307`")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=2000)
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}

    def show(name: str, draws: list[dict[str, float]]) -> None:
        found = {rule: float(np.mean([draw[rule] for draw in draws])) for rule in RULES if rule in draws[0]}
        print("|".join(["", name, *(f"{found[rule]:.2f}" if rule in found else "" for rule in RULES), ""]), flush=True)
        results[name] = found

    print(f"| pairs | {' | '.join(RULES)} |\n|---|{'---|' * len(RULES)}")
    for name in WORLDS:
        for objective in OBJECTIVES:
            draws = [of_world(name, objective, 1000 + seed, options.pairs) for seed in range(options.seeds)]
            show(f"{name}, {objective.name}", draws)
    show("mean of the worlds", list(results.values()))
    for name, draws in of_demo(options.scored, 200) if options.scored else ():
        show(name, draws)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
