"""What Ray costs: the three-model pipeline beside its bare engines, and sleeping stages beside plain Ray Data.

    python -m tests.benchmarks.bench_pipeline [--shards 6] [--lanes 1] [--placements pooled] [--tiny]
        [--only models|sleep|actors]

Models: SmolLM2 as policy and reference, the demo's reward model; bfloat16, one thread each; shards of 64 HH pairs, or
of our demo pairs where those are not at hand. L cores, the lanes, stand for the devices of a node: models run on them
and nothing else does, while Ray, reading, tokenising and committing have the other cores, as beside GPUs. `--lanes` of
all cores keeps none apart: models and Ray then compete. The bare engines run in sequence, without Ray, in one process a
lane, which hold the same models and share out the same tokenised shards; the `bare seconds` of a shard and stage are
what that took. Nothing can be faster than the sum of all bare seconds / L.

    rate      bare seconds of the work done in the steady part of the pipeline / L / its seconds: the share of the
              summed bare-engine rate. The steady part begins when the last model has finished its first shard (when
              the last actor has begun, if colocated), and ends when fewer actors than lanes have work left; loading
              and filling lie before it, draining after it.
    whole     the same from the first model's first shard to the end of the run, filling and draining included.
    CPU       bare CPU seconds of the work done between the first commit and the last / all CPU seconds that the run
              spent then, Ray's own processes included: what `rate` would be on a machine that does nothing else.
    busy      of an actor: its seconds on shards / the seconds from its first shard's begin to its last one's end.
    idle      of an actor: the share of those in which its next shard had left the stage before and it did not run.
              Where models are more than lanes, or one is slower than the next, an actor also waits for shards.

Reading, tokenising and committing are the pipeline's and not the bare engines' work. Gate: the committed scores equal
those of the bare engines to the bit.

Sleeping stages: three in a row, 64 shards of 64 rows, against three chained `map_batches` of plain Ray Data over blocks
of 64 rows; the figure is the busy share of the least busy actor. With `--only actors`: one pool of 1, 4, 16 and 64
actors that sleep for some seconds a shard, 16 shards an actor, on as many logical CPUs; the figure is how many actors
are busy while there are shards for all, and what the driver takes for each shard. `grow`: the pool begins with one
actor. The last line is a JSON object.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.scoring_data import machine
from tests.benchmarks.scoring_on_ray import MODELS, Figures, measure_models
from tests.benchmarks.scoring_sleep import measure_actors, measure_sleep

PLACEMENTS = ["pooled", "colocated"]


def show(figures: Figures) -> None:
    print(f"{figures.placement:<12}{'bare s':>9}{'pipeline s':>12}")
    for name, seconds in figures.bare_s.items():
        print(f"{name:<12}{seconds:>9.1f}{figures.pipeline_s[name]:>12.1f}")
    print("; ".join(f"{name}: busy {busy:.3f}, idle {figures.idle[name]:.3f}" for name, busy in figures.busy.items()))
    print(
        f"rate {figures.rate:.3f} over {figures.steady_s:.1f} s, "
        f"whole {figures.whole:.3f} over {figures.whole_s:.1f} s, CPU {figures.model_cpu:.3f}"
    )
    print("CPU seconds:", ", ".join(f"{name} {spent:.1f}" for name, spent in figures.cpu.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark the pipeline on Ray.")
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--lanes", type=int, help="cores for models; default: all but one, at most one a model")
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=PLACEMENTS)
    parser.add_argument("--tiny", action="store_true", help="tiny random models, to try the script")
    parser.add_argument("--only", choices=["models", "sleep", "actors"])
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 4, 16, 64], help="sizes of the pool that sleeps")
    parser.add_argument("--shard-s", type=float, default=4.0, help="seconds that one of them sleeps for a shard")
    options = parser.parse_args()
    lanes = options.lanes or max(1, min((os.cpu_count() or 1) - 1, len(MODELS)))
    found: dict[str, Any] = {"machine": machine()}
    print(json.dumps(found["machine"]))
    with tempfile.TemporaryDirectory(prefix="alignpot-pipeline-") as folder:
        for number in options.actors if options.only == "actors" else []:
            for grow in (False, True) if number > 1 else (False,):
                name = f"{number} actors{', grow' if grow else ''}"
                found[name] = measure_actors(Path(folder), number, options.shard_s, grow=grow)
                print(f"{name}: {json.dumps(found[name])}", flush=True)
        if options.only in (None, "models"):
            sizes = Path(folder), options.shards, options.shard_rows
            for figures in measure_models(*sizes, options.placements, lanes=lanes, tiny=options.tiny):
                show(figures)
                found[figures.placement] = figures.to_dict()
        if options.only in (None, "sleep"):
            found["sleep"] = {}
            for seconds in (0.002, 0.02):
                sleeps = measure_sleep(Path(folder), seconds, num_shards=16 if options.tiny else 64)
                print(f"{1000 * seconds:g} ms a row: busy {json.dumps(sleeps)}", flush=True)
                found["sleep"][f"{1000 * seconds:g} ms a row"] = sleeps
    print(json.dumps(found | {"machine_after": machine()}))


if __name__ == "__main__":
    main()
