"""Sleeping stages in our pipeline and in plain Ray Data: what is left is Ray's own time; see bench_pipeline."""

import json
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray.data

from pipeline.config import Run, Source, Storage, TorchModel
from pipeline.data.place import Place
from pipeline.drops import StageName
from pipeline.on_ray.engine import run_on_ray
from pipeline.on_ray.session import ray_session
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from pipeline.steps.work import Apply, ShardWork, Stage

ROWS: Final = 64
NAMES: tuple[StageName, ...] = ("reward", "policy", "reference")

Span = tuple[float, float]
_SHARDS_PER_ACTOR: Final = 16


def measure_sleep(folder: Path, row_s: float, *, num_shards: int) -> dict[str, float]:
    """Busy share of the least busy actor, ours and plain."""
    return {
        "alignpot": round(min(ours(folder, row_s, num_shards)), 4),
        "plain map_batches": round(min(plain(row_s, num_shards)), 4),
    }


def ours(folder: Path, row_s: float, num_shards: int) -> list[float]:
    works = _run(folder, NAMES, row_s, num_shards=num_shards)
    return [_busy(_spans(works, name)) for name in NAMES]


def measure_actors(folder: Path, num_actors: int, shard_s: float, *, grow: bool = False) -> dict[str, float]:
    """Throughput of a pool of actors that sleep, as the number of them that are busy, and the driver's CPU time.

    Taken over the time in which the pool is full: from the first moment at which all of them have begun until the last
    shard is handed out. grow: begin with one actor.
    """
    replicas = (1, num_actors) if grow else num_actors
    num_shards = _SHARDS_PER_ACTOR * num_actors
    cpu_s = time.process_time()
    works = _run(folder, NAMES[:1], shard_s / ROWS, num_shards=num_shards, replicas=replicas)
    cpu_s = time.process_time() - cpu_s
    spans = _spans(works, NAMES[0])
    first, last = _full(spans, num_actors), spans[-1][0]
    busy_s = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in spans)
    return {
        "busy actors": round(busy_s / (last - first), 2),
        "seconds": round(last - first, 1),
        "driver ms a shard": round(1000 * cpu_s / num_shards, 1),
    }


def _full(spans: Sequence[Span], num_actors: int) -> float:
    """When so many were first at work at the same time."""
    at_work = 0
    for at, change in sorted([*((begin, 1) for begin, _ in spans), *((end, -1) for _, end in spans)]):
        at_work += change
        if at_work == num_actors:
            return at
    raise RuntimeError(f"never were {num_actors} actors at work together; give them longer shards")


def _run(
    folder: Path, names: Sequence[StageName], row_s: float, *, num_shards: int, replicas: int | tuple[int, int] = 1
) -> list[ShardWork]:
    path = folder / f"sleep-{num_shards}"
    path.mkdir(exist_ok=True)
    text = "lorem ipsum dolor sit amet " * 20
    rows = (
        {"prompt": f"{i} {text}", "chosen": f"yes {text}", "rejected": f"no {text}"} for i in range(ROWS * num_shards)
    )
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = Place.open(str(path), Storage())
    reader, files = open_source(
        place.fs, place.root, Source(path=str(path)), rewards=False, policy_logps=False, reference_logps=False
    )
    model = TorchModel(model="none", num_gpus=0, replicas=replicas)
    stages = tuple(Stage(name=name, build=partial(_build_sleep, row_s), model=model) for name in names)
    return list(run_on_ray(reader, plan_shards(files, ROWS), stages, _summary, Run(shard_rows=ROWS)))


def _spans(works: Sequence[ShardWork], name: str) -> list[Span]:
    return sorted((t.started_s, t.ended_s) for work in works for t in work.timings if t.stage == name)


def _build_sleep(row_s: float) -> Apply:
    return partial(_sleep, row_s)


def _sleep(row_s: float, table: pa.Table) -> pa.Table:
    time.sleep(row_s * table.num_rows)
    return table


def _summary(index: int, table: pa.Table) -> pa.Table:
    return pa.table({"shard": [index], "rows": [table.num_rows]})


def plain(row_s: float, num_shards: int) -> list[float]:
    model = TorchModel(model="none", num_gpus=0)
    with ray_session(Run(), [model] * len(NAMES)):
        dataset = ray.data.range(ROWS * num_shards, override_num_blocks=num_shards)
        for name in NAMES:
            dataset = dataset.map_batches(
                SleepingActor,
                fn_constructor_args=(name, row_s),
                batch_size=ROWS,
                compute=ray.data.ActorPoolStrategy(size=1),
            )
        batches = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    columns = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return [_busy(set(zip(columns[f"{n}_start"], columns[f"{n}_end"], strict=True))) for n in NAMES]


class SleepingActor:
    """Sleeps for every row of a batch and writes down when."""

    def __init__(self, name: str, row_s: float) -> None:
        self._name = name
        self._row_s = row_s

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        size = len(batch["id"])
        started = time.time()
        time.sleep(self._row_s * size)
        spans = {f"{self._name}_start": np.full(size, started), f"{self._name}_end": np.full(size, time.time())}
        return {**batch, **spans}


def _busy(spans: Iterable[Span] | Sequence[Span]) -> float:
    ordered = sorted(spans)
    return sum(end - start for start, end in ordered) / (ordered[-1][1] - ordered[0][0])
