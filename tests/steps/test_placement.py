"""GPUs of the pools: what is asked for is given, the rest is shared so that every pool finds a place at once.

And how many shards an actor holds and works on.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pyarrow as pa
import pytest

from pipeline.config import Generate, TorchModel
from pipeline.errors import ConfigError, ModelError
from pipeline.models.layout import Layout
from pipeline.models.vllm_engine import gpu_share
from pipeline.on_ray.actors import StageActor, from_block, to_block
from pipeline.on_ray.engine import _groups, _pool, shards_at_hand
from pipeline.on_ray.placement import gpus_by_pool, share_gpus
from pipeline.steps.work import ShardWork, Stage


def pool(*models: tuple[str | float, int | tuple[int, int]], **keys) -> list[Stage]:
    return [
        Stage(
            name="policy",
            build=lambda: lambda table: table,
            model=TorchModel(model="m", num_gpus=n, replicas=r, **keys),
        )
        for n, r in models
    ]


@pytest.mark.parametrize(
    ("pools", "num_gpus", "expected"),
    [
        ([pool(("auto", 1)), pool(("auto", 1)), pool(("auto", 1))], 0, [0, 0, 0]),
        ([pool(("auto", 1)), pool(("auto", 1)), pool(("auto", 1))], 1, [1 / 3, 1 / 3, 1 / 3]),
        ([pool(("auto", 1)), pool(("auto", 1)), pool(("auto", 1))], 2, [1 / 2, 1 / 2, 1 / 2]),
        ([pool(("auto", 1)), pool(("auto", 1)), pool(("auto", 1))], 8, [1, 1, 1]),
        ([pool(("auto", 4)), pool(("auto", 2))], 3, [1 / 2, 1 / 2]),
        ([pool(("auto", (1, 8))), pool(("auto", (1, 1)))], 2, [1, 1]),
        ([pool((2, 1)), pool(("auto", 1))], 3, [2, 1]),
        ([pool((1, 1)), pool(("auto", 1))], 1, [1, 0]),
        ([pool(("auto", 1), ("auto", 1), ("auto", 1))], 1, [1]),
        ([[], pool((0, 1))], 4, [0, 0]),
    ],
)
def test_gpus_are_shared_among_pools_on_auto(pools, num_gpus, expected):
    assert share_gpus(pools, num_gpus) == pytest.approx(expected)


def engine(num_gpus: str | float, num_shards: int = 1) -> Stage:
    generate = Generate(num_gpus="auto", engine_args={"tensor_parallel_size": num_shards})
    generate = generate.model_copy(update={"num_gpus": num_gpus})
    return Stage(name="generate", build=lambda: lambda table: table, model=generate, env={"NAME": "value"})


def test_an_engine_on_auto_reserves_a_gpu_for_each_shard():
    assert share_gpus([[engine("auto", 2)], pool(("auto", 2))], 4) == [2, 1]
    assert share_gpus([[engine("auto", 2)]], 0) == [0]
    assert share_gpus([[engine(0, 2)], [engine(2, 2)]], 2) == [0, 2]


def test_fewer_gpus_than_shards_are_refused():
    with pytest.raises(ConfigError, match="num_gpus: 2"):
        share_gpus([[engine(1, 2)]], 8)


@pytest.mark.parametrize(
    ("group", "num_gpus", "share"),
    [
        ([engine("auto")], 0.5, 0.5),
        ([engine("auto")], 1, 1),
        ([engine("auto", 2)], 2, 1),
        ([engine("auto"), *pool(("auto", 1))], 1, 0.5),
        ([engine("auto", 2), engine("auto", 2)], 2, 0.5),
        ([engine(0.25)], 0.25, 0.25),
        ([engine("auto")], 0, 1),
    ],
)
def test_an_engine_fills_the_share_of_a_gpu_that_ray_reserved_for_it(group, num_gpus, share, monkeypatch):
    for name, value in _pool(group, num_gpus, num_shards=1)["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)
    assert gpu_share(group[0].model, group[0].model.engine_args) == pytest.approx(share)


def test_pools_without_an_engine_get_no_environment():
    assert "runtime_env" not in _pool(pool(("auto", 1)), 1, num_shards=1)


def test_an_engine_outside_ray_fills_what_its_place_asks_for():
    assert [gpu_share(engine(n).model, {}) for n in ("auto", 0, 0.5, 1)] == [1, 1, 0.5, 1]


@pytest.mark.parametrize(
    ("replicas", "num_shards", "sizes", "at_hand"),
    [(4, 64, (4, 4), 2), (4, 3, (3, 3), 2), ((2, 8), 64, (2, 8), 6), ((2, 8), 1, (1, 1), 6)],
)
def test_pool_may_grow_between_two_numbers_if_there_are_shards_for_it(replicas, num_shards, sizes, at_hand):
    compute = _pool(pool((0, replicas)), 0, num_shards=num_shards)["compute"]
    assert (compute.min_size, compute.max_size, compute.max_tasks_in_flight_per_actor) == (*sizes, at_hand)


def test_accelerator_is_asked_of_ray_and_models_in_one_process_agree_on_it():
    assert _pool(pool((1, 1), accelerator_type="A100"), 1, num_shards=1)["accelerator_type"] == "A100"
    assert "accelerator_type" not in _pool(pool((1, 1)), 1, num_shards=1)
    with pytest.raises(ConfigError, match=r"name A100 and L4\. .* set run\.placement: pooled"):
        _pool([*pool((1, 1), accelerator_type="L4"), *pool((1, 1), accelerator_type="A100")], 1, num_shards=1)


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        ({"CPU": 8.0}, "no node has the accelerator_type A100: leave accelerator_type out"),
        ({"CPU": 8.0, "accelerator_type:L4": 1.0}, "no node has the accelerator_type A100: set accelerator_type to L4"),
        ({"CPU": 1.0, "accelerator_type:A100": 1.0}, "need 2.25 CPUs of 1 that there are: lower replicas"),
        ({"CPU": 8.0, "accelerator_type:A100": 1.0}, ""),
    ],
)
def test_cluster_without_room_for_the_fewest_actors_is_refused(resources, problem, monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    groups = [pool((0, (2, 100)), accelerator_type="A100")]
    if not problem:
        assert gpus_by_pool(groups, may_grow=False) == [0]
        return
    with pytest.raises(ConfigError, match=problem):
        gpus_by_pool(groups, may_grow=False)
    assert gpus_by_pool(groups, may_grow=True) == [0]


@pytest.mark.parametrize(
    ("replicas", "num_shards", "expected"), [(1, 3, 6), (1, 1000, 6), (2, 5, 2), (2, 64, 4), (2, 1000, 6), (8, 100, 2)]
)
def test_actors_that_share_few_shards_hold_few(replicas, num_shards, expected):
    assert shards_at_hand(replicas, num_shards) == expected


def test_an_actor_works_on_one_shard_at_a_time_though_calls_overlap():
    at_work, most = 0, 0

    def apply(table):
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        time.sleep(0.05)
        at_work -= 1
        return table

    actor = StageActor([Stage(name="reward", build=lambda: apply)])
    blocks = [to_block(ShardWork(shard=i, table=pa.table({"id": ["a"]}))) for i in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = [from_block(block) for block in threads.map(actor, blocks)]
    assert [work.shard for work in found] == [0, 1, 2, 3]
    spans = sorted((work.timings[0].started_s, work.timings[0].ended_s) for work in found)
    assert most == 1
    assert all(ended <= started for (_, ended), (started, _) in pairwise(spans))


def test_calls_of_an_engine_with_an_environment_of_its_own_do_not_overlap():
    assert _pool([engine("auto")], 1, num_shards=4)["max_concurrency"] == 1
    assert _pool(pool(("auto", 1)), 1, num_shards=4)["max_concurrency"] == 2


def test_an_actor_whose_stages_take_turns_gives_each_all_shards_of_a_block():
    calls: list[tuple[str, int | None]] = []

    def stage(name: str, fails_on: int | None = None) -> Stage:
        def build():
            calls.append((name, None))

            def apply(table):
                calls.append((name, table["id"][0].as_py()))
                if fails_on == calls[-1][1]:
                    raise ModelError("no number")
                return table.append_column(name, table["id"])

            return apply

        return Stage(name=name, build=build, model=TorchModel(model="m"))

    shards = [ShardWork(shard=i, table=pa.table({"id": [i]})) for i in range(2)]
    block = pa.concat_tables(map(to_block, shards))
    done = StageActor([stage("reward"), stage("policy")], take_turns=True)(block)
    works = [from_block(done.slice(i, 1)) for i in range(2)]
    assert calls == [(name, of) for name in ("reward", "policy") for of in (None, 0, 1)]
    assert [work.table.to_pylist() for work in works] == [[{"id": i, "reward": i, "policy": i}] for i in range(2)]
    assert [[timing.stage for timing in work.timings] for work in works] == [["reward", "policy"]] * 2

    done = StageActor([stage("reward"), stage("policy", fails_on=1)], take_turns=True)(block)
    assert [str(from_block(done.slice(i, 1)).failure) for i in range(2)] == ["no number"] * 2


@pytest.mark.parametrize(("num_shards", "most"), [(64, 4), (3, 2), (2, 1)])
def test_a_pool_that_takes_turns_gets_batches_and_no_more_actors_than_batches(num_shards, most):
    asked = _pool(pool((0, 4), (0, 1)), 0, num_shards=num_shards, turn_shards=2)
    assert (asked["batch_size"], asked["compute"].max_size) == (2, most)
    assert asked["fn_constructor_kwargs"] == {"take_turns": True}


@pytest.mark.parametrize(
    ("placement", "expected"),
    [("pooled", [["tokenise"], ["reward"], ["policy"]]), ("in_turn", [["tokenise"], ["reward", "policy"]])],
)
def test_models_that_take_turns_share_actors(placement, expected):
    stages = [Stage(name="tokenise", build=list)]
    stages += [Stage(name=name, build=list, model=TorchModel(model="m")) for name in ("reward", "policy")]
    assert [[stage.name for stage in group] for group in _groups(stages, placement)] == expected


def test_shares_of_a_layout_go_to_the_pools_with_a_gpu(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    groups = [[Stage(name="tokenise", build=list)], pool(("auto", 1)), pool((0, 1)), pool(("auto", 1))]
    layout = Layout(placement="pooled", shares=(0.7, 0.2))
    assert gpus_by_pool(groups, layout, may_grow=False) == [0, 0.7, 0, 0.2]
    assert gpus_by_pool(groups, Layout(placement="pooled"), may_grow=False) == [0, 0.5, 0, 0.5]
