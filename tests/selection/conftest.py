"""Settings of the selection tests: blocks small enough that few rows fill many."""

import pytest

from pipeline.selection import source, survey


@pytest.fixture(scope="module", autouse=True)
def small_blocks(request):
    if request.module.__name__.endswith("test_memory"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_ROWS", 16)
        patch.setattr(survey, "SAMPLE_ROWS", 100)
        yield
