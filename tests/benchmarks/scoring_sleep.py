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
from pipeline.steps.work import Apply, Stage

ROWS: Final = 64
NAMES: tuple[StageName, ...] = ("reward", "policy", "reference")

Span = tuple[float, float]


def measure_sleep(folder: Path, row_s: float, *, num_shards: int) -> dict[str, float]:
    """Busy share of the least busy actor, ours and plain."""
    return {
        "alignpot": round(min(ours(folder, row_s, num_shards)), 4),
        "plain map_batches": round(min(plain(row_s, num_shards)), 4),
    }


def ours(folder: Path, row_s: float, num_shards: int) -> list[float]:
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
    model = TorchModel(model="none", num_gpus=0)
    stages = tuple(Stage(name=name, build=partial(_build_sleep, row_s), model=model) for name in NAMES)
    run = Run(shard_rows=ROWS)
    works = list(run_on_ray(reader, plan_shards(files, ROWS), stages, _summary, run))
    spans = [[(t.started_s, t.ended_s) for work in works for t in work.timings if t.stage == name] for name in NAMES]
    return [_busy(of) for of in spans]


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
