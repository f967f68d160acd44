"""The driver's memory does not grow with the dataset."""

import pytest

from tests.benchmarks.bench_memory import measure


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["plain", pytest.param("ray", marks=pytest.mark.ray)])
def test_driver_needs_no_more_memory_for_100_times_the_rows(engine: str):
    figures = measure(300, engine)
    assert figures["mib_100x"] < figures["mib"] * 1.25, figures
