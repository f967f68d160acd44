"""Subsets to export: pairs of our own sample data with made-up scores, and some that not every format can hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import config
from pipeline import schema as names
from pipeline.data.files import file_shards, finish_files, with_layout, write_files
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run
from pipeline.exports.export import export_subset

PAIRS = Path(__file__).parents[2] / "pipeline" / "demo" / "pairs.jsonl"
SYSTEM = {"role": "system", "content": "Answer like a pirate."}
TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]'
_INTERNAL = {names.CONTENT_DIGEST, *(field.name for field in names.OUTCOME_FIELDS)}
SCHEMA = pa.schema([*(f for f in names.scored_schema([pa.field("label", pa.string())]) if f.name not in _INTERNAL),
                    *names.SUBSET_FIELDS])  # fmt: skip


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def good_rows(num_rows: int = 12) -> list[dict[str, Any]]:
    """Pairs that every format holds; the second has a system prompt, the third several turns."""
    rows = []
    for index, line in enumerate(PAIRS.read_text().splitlines()[:num_rows]):
        pair = json.loads(line)
        scores = {names.REWARD_CHOSEN: index / 7 + 1, names.REWARD_REJECTED: index / 7, names.MARGIN_EXPLICIT: 1.0,
                  names.REFERENCE_LOGP_CHOSEN: -10.5 - index, names.REFERENCE_LOGP_REJECTED: -20.25 - index,
                  names.POTENTIAL: 0.5 + index}  # fmt: skip
        rows.append(dict.fromkeys(SCHEMA.names) | pair | scores)
    rows[1]["prompt"] = [SYSTEM, *rows[1]["prompt"]]
    rows[2]["prompt"] = [turn("user", "Hi ✓"), turn("assistant", "Hello!"), *rows[2]["prompt"]]
    return rows


def odd_rows() -> list[dict[str, Any]]:
    """One pair with tools, one with two user turns in a row, one with an answer in several turns, a short answer."""
    tools, turns, answers, short = good_rows(4)
    tools |= {"id": "with-tools", "tools": TOOLS}
    turns |= {"id": "two-users", "prompt": [turn("user", "first words"), turn("user", "second words")]}
    several = [turn("assistant", "I look."), turn("tool", "42"), turn("assistant", "It is 42.")]
    answers |= {"id": "three-turns", "chosen": several}
    short |= {"id": "short", "chosen": [turn("assistant", "I ")]}
    return [tools, turns, answers, short]


def write_subset(
    url: str,
    rows: list[dict[str, Any]],
    storage: config.Storage | None = None,
    *,
    schema: pa.Schema = SCHEMA,
    rows_per_file: int = 5,
    **changes: Any,
) -> str:
    table = pa.Table.from_pylist(rows, schema=schema)
    values = {"kind": SUBSET, "schema": schema, "formats": ("hf", "parquet"), "config": {},
              "shards": file_shards({"train": len(rows)}, rows_per_file),
              "fingerprint": {"scored": "abc", "select": {"seed": 0}}}  # fmt: skip
    run = Run.claim(Place.open(url, storage or config.Storage()), with_layout(Plan(**{**values, **changes})))
    finish_files(run, write_files(run, [table]), {}, {})
    return url


def export(subset: str | Path, to: str, output: str | Path, **changes: Any) -> str:
    storage = changes.pop("storage", None) or config.Storage()
    return export_subset(Place.open(str(subset), storage), to, Place.open(str(output), storage), **changes)


def json_rows(output: Path) -> list[dict[str, Any]]:
    files = sorted((output / "data").iterdir())
    assert {path.suffix for path in files} == {".jsonl"}
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def subset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve pairs that every format holds."""
    return write_subset(str(tmp_path_factory.mktemp("subset") / "good"), good_rows())


@pytest.fixture(scope="session")
def odd_subset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """These, and four that not every format holds."""
    return write_subset(str(tmp_path_factory.mktemp("subset") / "odd"), [*good_rows(), *odd_rows()])


@pytest.fixture
def exported(subset: str, tmp_path: Path) -> Callable[..., Path]:
    """Exports the good pairs to a format; the folder."""

    def make(to: str, **changes: Any) -> Path:
        export(subset, to, tmp_path / to, **changes)
        return tmp_path / to

    return make
