"""Settings of the selection tests: blocks and samples so small that few rows fill many."""

import pytest

from pipeline.metrics import ranker
from pipeline.selection import fit, threshold


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker, "_BLOCK", 16)
        patch.setattr(fit, "_BLOCK", 16)
        patch.setattr(threshold, "_SAMPLE", 20)
        patch.setattr(threshold, "_CHUNK", 16)
        yield
