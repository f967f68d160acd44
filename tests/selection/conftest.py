"""Settings of the selection tests: blocks and samples small enough that few rows fill many."""

import pytest

from pipeline.selection import one_pass, samples, source


@pytest.fixture(scope="module", autouse=True)
def small_blocks(request):
    if request.module.__name__.endswith("test_memory"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_ROWS", 16)
        patch.setattr(samples, "STRIDED_ROWS", 100)
        patch.setattr(one_pass, "LEAST_ROWS", 8)
        yield
