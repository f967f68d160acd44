"""Real preference data that lies outside the repository; every test that uses it has a stand-in of our own."""

import os
from pathlib import Path

import pytest


def shared_folder() -> Path | None:
    """Folder with alpaca_eval_onpolicy.parquet and hh_harmless.jsonl.gz, beside the checkout or as ALIGNPOT_SHARED."""
    shared = Path(os.environ.get("ALIGNPOT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    return shared / "data" if (shared / "data" / "hh_harmless.jsonl.gz").exists() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("no preference data beside the checkout (set ALIGNPOT_SHARED to a folder with data/)")
    return folder
