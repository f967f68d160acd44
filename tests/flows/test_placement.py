"""GPUs of the pools: what is asked for is given, the rest is shared so that every pool finds a place at once."""

import pytest

from pipeline.config import TorchModel
from pipeline.config_self_play import Generate
from pipeline.errors import ConfigError
from pipeline.flows.on_ray import _pool
from pipeline.flows.placement import share_gpus
from pipeline.models.vllm_engine import gpu_share
from pipeline.stages.plan import Stage


def pool(*models: tuple[str | float, int]) -> list[Stage]:
    return [
        Stage(name="policy", build=lambda: lambda table: table, model=TorchModel(model="m", num_gpus=n, replicas=r))
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
