"""Settings of the selection tests: no time limit for one example, and blocks small enough that few rows fill many."""

import pytest
from hypothesis import settings

from pipeline.selection import source, survey

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="module", autouse=True)
def small_blocks(request):
    if request.module.__name__.endswith("test_memory"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_ROWS", 16)
        patch.setattr(survey, "SAMPLE_ROWS", 100)
        yield
