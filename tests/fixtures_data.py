"""Real preference data that lies outside the repository; every test that uses it has a stand-in of our own."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with alpaca_eval_onpolicy.parquet and hh_harmless.jsonl.gz."""
    shared = Path(os.environ.get("ALIGNPOT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (shared / "data" / "hh_harmless.jsonl.gz").exists():
        pytest.skip("no preference data beside the checkout (set ALIGNPOT_SHARED to a folder with data/)")
    return shared / "data"
