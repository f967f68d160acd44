"""A small source, the config of a whole job on it without models, and the events that are sent."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, parse_config
from tests.sources import layouts as to

NUM_ROWS = 20
SECRET = "the text of a row"

Event = dict[str, Any]


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of OpenLineage or of a scheduler is set, and no file of a user is found."""
    for name in [name for name in os.environ if name.startswith(("OPENLINEAGE", "AIRFLOW", "AWS_BATCH"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[Event]]:
    """Sets the client up to write to a file; gives the events that came since the last call."""
    file = tmp_path / "events.jsonl"
    for name, value in (("TYPE", "file"), ("LOG_FILE_PATH", str(file)), ("APPEND", "true")):
        monkeypatch.setenv(f"OPENLINEAGE__TRANSPORT__{name}", value)

    def new() -> list[Event]:
        text = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        assert SECRET not in text
        return [json.loads(line) for line in text.splitlines()]

    return new


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Config]:
    """The config of a job; the source has ids, rewards and a column to pass through."""
    to.write_parquet(
        tmp_path / "pairs.parquet",
        [
            {**to.pair(prompt=f"{SECRET} {n}?"), "reward_chosen": float(n), "reward_rejected": 0.5, "key": f"k{n}",
             "topic": "x" if n % 10 else "y"}
            for n in range(NUM_ROWS)
        ],
    )  # fmt: skip

    def config(**sections: Any) -> Config:
        base: dict[str, Any] = {
            "source": {"path": str(tmp_path / "pairs.parquet"), "id_column": "key", "passthrough": ["topic"]},
            "reward": {"backend": "columns"},
            "metric": {"name": "explicit"},
            "scored": str(tmp_path / "scored"),
            "select": {"fraction": 0.4},
            "output": {"path": str(tmp_path / "subset")},
            "run": {"engine": "plain"},
        }
        for name, section in sections.items():
            base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
        return parse_config({name: section for name, section in base.items() if section is not None})

    return config
