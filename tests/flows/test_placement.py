"""GPUs of the pools: what is asked for is given, the rest is shared so that every pool finds a place at once."""

import pytest

from pipeline.config import TorchModel
from pipeline.flows.placement import share_gpus
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
