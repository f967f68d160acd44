"""The driver's memory does not grow with the dataset."""

import pytest

from tests.benchmarks.bench_memory import measure


@pytest.mark.slow
@pytest.mark.ray
def test_driver_needs_no_more_memory_for_100_times_the_rows():
    figures = measure("ray", (300, 30_000))
    # The rows weigh 56 MiB in Arrow and more in Python. Without them, buffers that fill once take some 50.
    assert figures["mib_large"] - figures["mib"] < 100, figures
