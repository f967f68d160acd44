"""The driver's memory does not grow with the dataset."""

import pytest

from tests.benchmarks.bench_memory import measure


@pytest.mark.soak
@pytest.mark.ray
def test_driver_needs_no_more_memory_for_three_times_the_rows():
    # With 30,000 rows the buffers of tasks that read and write are full. 60,000 rows more weigh 112 MiB in Arrow.
    figures = measure("ray", (30_000, 90_000))
    assert figures["mib_large"] - figures["mib"] < 60, figures
