"""The three-model pipeline on Ray beside its bare engines; bench_pipeline says what is measured."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipeline.config import Config, parse_config
from pipeline.data.dataset import Dataset
from pipeline.data.run import Run
from pipeline.demo.models import build_reward_model, ensure_smollm2
from pipeline.on_ray.engine import run_on_ray
from pipeline.steps.rows import without_transient
from pipeline.steps.score import prepare_score
from pipeline.steps.score_stages import score_stages
from pipeline.steps.shards import AnyShard
from pipeline.steps.step import Step, commit_to, pending_shards
from pipeline.steps.work import Apply, ShardWork, read_shard
from tests.benchmarks.scoring_data import read_rows
from tests.benchmarks.scoring_processes import CpuMeter
from tests.fixtures_models import tiny_model, tiny_tokenizer

MODELS = ("reward", "policy", "reference")
SCORES = [f"{kind}_{side}" for kind in ("reward", "policy_logp", "reference_logp") for side in ("chosen", "rejected")]

Seconds = dict[tuple[str, int], tuple[float, float]]  # wall and CPU, by stage and shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The shards as committed; CPU seconds by process between the first commit and the last, and when these were."""

    works: Sequence[ShardWork]
    cpu: Mapping[str, float]
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What bench_pipeline reports; by stage where it is a mapping, by actor in `busy` and `idle`."""

    placement: str
    shards: int
    lanes: int
    rate: float
    steady_s: float
    whole: float
    whole_s: float
    model_cpu: float
    cpu: Mapping[str, float]
    bare_s: Mapping[str, float]
    pipeline_s: Mapping[str, float]
    busy: Mapping[str, float]
    idle: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)), parse_float=lambda x: round(float(x), 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """The cores that models run on, and those of everything else; the same ones where none are kept apart."""

    models: Sequence[int]
    rest: Sequence[int]

    @classmethod
    def with_lanes(cls, lanes: int) -> "Cores":
        """The first cores for models; the others for the rest, if there are others."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(models=cores[:lanes], rest=cores[lanes:] or cores)


def measure_models(
    folder: Path, num_shards: int, shard_rows: int, placements: Sequence[str], *, lanes: int, tiny: bool
) -> Iterator[Figures]:
    """The pipeline in each of the placements beside the same bare engines, which run once."""
    cores = Cores.with_lanes(lanes)
    config = make_config(folder, num_shards, shard_rows, tiny=tiny)
    bare: Seconds = {}
    for placement in placements:
        scoring = prepare_score(placed(config, placement, folder / placement, lanes))
        _, step, run = scoring
        shards = pending_shards(step, run)
        if not bare:
            bare, expected = run_bare(config, [read_shard(step.rows.reader, shard).table for shard in shards], cores)
        ran = run_pipeline(*scoring, shards, cores)
        check_equal(run, expected)
        yield figures_of(bare, ran, lanes, placement)


def placed(config: Config, placement: str, scored: Path, lanes: int) -> Config:
    """The config with a pool for each model, or with as many actors as lanes that hold all of them."""
    models: dict[str, Any] = {}
    if placement == "colocated":
        models = {name: getattr(config, name).model_copy(update={"replicas": lanes}) for name in MODELS}
    run = config.run.model_copy(update={"placement": placement})
    return config.model_copy(update={**models, "run": run, "scored": str(scored)})


def make_config(folder: Path, num_shards: int, shard_rows: int, *, tiny: bool) -> Config:
    name, rows = read_rows(None, num_shards * shard_rows)
    print(f"{len(rows)} pairs of {name}, {shard_rows} a shard")
    source = folder / "source" / "pairs.jsonl"
    source.parent.mkdir()
    source.write_text("".join(json.dumps({"id": f"{i:05d}", **row}) + "\n" for i, row in enumerate(rows)))
    policy, reward = _tiny_models(folder) if tiny else _smollm2(folder)
    shared = {"dtype": "bfloat16", "token_budget": 4096, "num_gpus": 0}
    return parse_config(
        {
            "source": {"path": str(source.parent), "id_column": "id"},
            "policy": {"model": str(policy), **shared},
            "reference": {"model": str(policy), **shared},
            "reward": {"backend": "classifier", "model": str(reward), **shared},
            "objective": {"name": "dpo"},
            "scored": str(folder / "scored"),
            "run": {"engine": "ray", "shard_rows": shard_rows},
        }
    )


def _smollm2(folder: Path) -> tuple[Path, Path]:
    policy = ensure_smollm2()
    return policy, build_reward_model(policy, folder)


def _tiny_models(folder: Path) -> tuple[Path, Path]:
    for name, options in (("policy", {}), ("reward", {"classifier": True, "num_labels": 1})):
        tiny_model("llama", **options).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder / "policy", folder / "reward"


def run_bare(config: Config, tables: Sequence[pa.Table], cores: Cores) -> tuple[Seconds, dict[int, pa.Table]]:
    """Seconds of each stage on each shard, and the tables with their scores."""
    lanes = len(cores.models)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(lanes), context.SimpleQueue()
    hands = [{i: table for i, table in enumerate(tables) if i % lanes == lane} for lane in range(lanes)]
    processes = [
        context.Process(target=_bare_lane, args=(config, hand, core, barrier, results))
        for hand, core in zip(hands, cores.models, strict=True)
    ]
    for process in processes:
        process.start()
    seconds: Seconds = {}
    scored: dict[int, pa.Table] = {}
    for _ in processes:
        lane_seconds, lane_tables = results.get()
        seconds |= lane_seconds
        scored |= lane_tables
    for process in processes:
        process.join()
    return seconds, scored


def _bare_lane(config: Config, tables: dict[int, pa.Table], core: int, barrier: Any, results: Any) -> None:
    """One process: tokenise all, then each engine in turn over its shards, at the same time as the other lanes."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    seconds: Seconds = {}
    applies = {stage.name: stage.build() for stage in score_stages(config)}
    tokenise = applies.pop("tokenise")
    tables = {index: tokenise(table) for index, table in tables.items()}
    for name, apply in applies.items():
        apply(next(iter(tables.values())).slice(0, 8))  # warm, and past the comparison of the first rows
        barrier.wait()
        for index, table in tables.items():
            started, cpu = time.perf_counter(), time.process_time()
            tables[index] = apply(table)
            seconds[name, index] = (time.perf_counter() - started, time.process_time() - cpu)
    results.put((seconds, {index: without_transient(table) for index, table in tables.items()}))


def _build_on(cores: Sequence[int], build: Callable[[], Apply]) -> Apply:
    """A model that is run on some cores; the other threads of its actor stay with Ray's."""
    apply = build()

    def apply_on_cores(table: pa.Table) -> pa.Table:
        os.sched_setaffinity(0, cores)  # of this thread: an actor's calls come by several
        return apply(table)

    return apply_on_cores


@contextmanager
def _this_process_on(cores: Sequence[int]) -> Iterator[None]:
    """Keep this thread, and all processes and threads that it starts, to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run_pipeline(config: Config, step: Step, run: Run, shards: Sequence[AnyShard], cores: Cores) -> Ran:
    stages = [
        stage if stage.model is None else replace(stage, build=partial(_build_on, cores.models, stage.build))
        for stage in score_stages(config)
    ]
    commit = partial(commit_to, run.place, run.plan.part_specs(shard.index for shard in shards))
    cpu: dict[str, float] = {}
    with _this_process_on(cores.rest):
        results = run_on_ray(step.rows.reader, shards, stages, commit, config.run)
        works = [next(results)]
        meter = CpuMeter()
        first_s = last_s = time.time()
        for work in islice(results, len(shards) - 1):
            works.append(work)
            last_s, cpu = time.time(), meter.read()
        works += results
    return Ran(works=works, cpu=cpu, first_s=first_s, last_s=last_s)


def check_equal(run: Run, expected: Mapping[int, pa.Table]) -> None:
    """The gate: what the pipeline committed equals what the bare engines found, to the bit."""
    committed = Dataset(run.place, run.finish({})).table(["id", *SCORES]).sort_by("id")
    bare = pa.concat_tables([table.select(["id", "status", *SCORES]) for table in expected.values()]).sort_by("id")
    bare = bare.filter(pa.compute.equal(bare["status"], "kept")).drop_columns(["status"])
    if not committed.combine_chunks().equals(bare.combine_chunks()):
        raise SystemExit("the pipeline's scores differ from those of the bare engines")
    print(f"gate: {committed.num_rows} rows with equal scores", flush=True)


@dataclass(frozen=True, slots=True, order=True)
class Visit:
    """A shard with an actor: when it began and ended, and when the shard had left the stage before."""

    started: float
    ended: float
    ready: float


def figures_of(bare: Seconds, ran: Ran, lanes: int, placement: str) -> Figures:
    spans = {
        (timing.stage, work.shard): (timing.started_s, timing.ended_s) for work in ran.works for timing in work.timings
    }
    actors = visits_of_pools(ran.works) if placement == "pooled" else visits_of_actors(ran.works)
    # With a pool for each model the last one begins with what the others have done; else all begin at once.
    begins = [visits[0].ended if placement == "pooled" else visits[0].started for visits in actors.values()]
    ends = sorted(visits[-1].ended for visits in actors.values())
    begin, end = max(begins), ends[len(ends) - lanes]
    first, last = min(visits[0].started for visits in actors.values()), max(ended for _, ended in spans.values())
    steady = sum(wall * _share(spans[key], begin, end) for key, (wall, _) in bare.items())
    model_cpu = sum(cpu * _share(spans[key], ran.first_s, ran.last_s) for key, (_, cpu) in bare.items())
    return Figures(
        placement=placement,
        shards=len(ran.works),
        lanes=lanes,
        rate=steady / lanes / (end - begin) if end > begin else float("nan"),
        steady_s=end - begin,
        whole=sum(wall for wall, _ in bare.values()) / lanes / (last - first),
        whole_s=last - first,
        model_cpu=model_cpu / sum(ran.cpu.values()),
        cpu=ran.cpu,
        bare_s={name: sum(wall for (stage, _), (wall, _) in bare.items() if stage == name) for name in MODELS},
        pipeline_s={name: sum(b - a for (stage, _), (a, b) in spans.items() if stage == name) for name in MODELS},
        busy={name: sum(v.ended - v.started for v in visits) / _length(visits) for name, visits in actors.items()},
        idle={name: _idle_s(visits) / _length(visits) for name, visits in actors.items()},
    )


def visits_of_pools(works: Sequence[ShardWork]) -> dict[str, list[Visit]]:
    """Visits by model, where each has an actor of its own."""
    found: dict[str, list[Visit]] = {name: [] for name in MODELS}
    for work in works:
        for before, timing in pairwise(t for t in work.timings if t.stage in {"tokenise", *MODELS}):
            found[timing.stage].append(Visit(timing.started_s, timing.ended_s, ready=before.ended_s))
    return {name: sorted(visits) for name, visits in found.items()}


def visits_of_actors(works: Sequence[ShardWork]) -> dict[str, list[Visit]]:
    """Visits by actor, where each holds every model: a shard is with the first that was free when it began."""
    found: list[list[Visit]] = []
    at = [{timing.stage: timing for timing in work.timings} for work in works]
    for visit in sorted(Visit(t[MODELS[0]].started_s, t[MODELS[-1]].ended_s, ready=t["tokenise"].ended_s) for t in at):
        free = next((visits for visits in found if visits[-1].ended <= visit.started), None)
        if free is None:
            found.append([visit])
        else:
            free.append(visit)
    return {f"actor {number}": visits for number, visits in enumerate(found)}


def _length(visits: Sequence[Visit]) -> float:
    return visits[-1].ended - visits[0].started


def _idle_s(visits: Sequence[Visit]) -> float:
    """Seconds in which an actor did nothing although its next shard had left the stage before."""
    return sum(max(0.0, after.started - max(before.ended, after.ready)) for before, after in pairwise(visits))


def _share(span: tuple[float, float], begin: float, end: float) -> float:
    """The share of a span that lies between two times."""
    return max(0.0, min(span[1], end) - max(span[0], begin)) / (span[1] - span[0])
