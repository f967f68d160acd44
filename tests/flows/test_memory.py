"""The driver's memory does not grow with the dataset."""

import pytest

from tests.benchmarks.bench_memory import measure


@pytest.mark.slow
@pytest.mark.ray
def test_driver_needs_no_more_memory_for_100_times_the_rows():
    figures = measure("ray", (300, 30_000))
    assert figures["ratio"] < 1.2, figures
