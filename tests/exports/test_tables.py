"""Publish to real tables on local disk: one commit whatever happens, nothing twice, and read back as the same rows."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import publish
from pipeline.commands import select_only
from pipeline.config import parse_config
from pipeline.errors import StorageError, TemporaryError
from pipeline.exports.tables.table import check_columns
from tests.exports.conftest import SCHEMA, by_id, good_rows
from tests.exports.local_tables import KINDS, Killed, Tables, fail_once

SEAMS = [
    ("iceberg", "pyiceberg.catalog.sql.SqlCatalog.commit_table", "new"),
    ("iceberg", "pyiceberg.catalog.sql.SqlCatalog.commit_table", "old"),
    ("delta", "pipeline.exports.tables.rows.create_from_file", "old"),
    ("delta", "pipeline.exports.tables.delta.create_table_with_add_actions", "new"),
    ("delta", "deltalake.DeltaTable.create_write_transaction", "old"),
    ("lance", "pipeline.exports.tables.lance.write_fragments", "new"),
    ("lance", "lance.LanceDataset.commit", "new"),
    ("lance", "lance.LanceDataset.commit", "old"),
]
"""What changes storage, by kind of table, when the table is new or old."""
LOST = [case for case in SEAMS if case[2] == "new" and "write" not in case[1]]
"""The commits among them."""


@pytest.mark.parametrize("kind", KINDS)
def test_published_once_appended_to_and_replaced(kind: str, tables: Tables, subset: str, other_subset: str):
    assert publish(subset, tables.url(kind)).startswith("published 12 pairs")
    assert tables.rows(kind) == by_id(good_rows())
    assert publish(subset, tables.url(kind)).startswith("already published")
    assert tables.num_commits(kind) == 1
    assert publish(other_subset, tables.url(kind)).startswith("published 7 pairs")
    assert len(tables.rows(kind)) == 19
    assert publish(subset, tables.url(kind)).startswith("already published")
    assert publish(subset, tables.url(kind), mode="replace").startswith("published 12 pairs")
    assert tables.rows(kind) == by_id(good_rows())
    assert publish(subset, tables.url(kind), mode="replace").startswith("already published")
    assert tables.num_commits(kind) == 3
    assert publish(other_subset, tables.url(kind)).startswith("published 7 pairs")
    assert len(tables.rows(kind)) == 19
    assert tables.num_commits(kind) == 4


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("kind", "seam", "age"), SEAMS)
def test_killed_at_any_step_the_rerun_makes_one_commit(
    kind: str, seam: str, age: str, when: str, tables: Tables, subset: str, other_subset: str, monkeypatch
):
    before = []
    if age == "old":
        publish(other_subset, tables.url(kind))
        before = tables.rows(kind)
    fail_once(monkeypatch, seam, when, Killed())
    with pytest.raises(Killed):
        publish(subset, tables.url(kind))
    is_done = when == "after" and not seam.endswith(("create_from_file", "write_fragments"))
    whole = sorted([*before, *by_id(good_rows())], key=lambda row: row["id"])
    assert tables.rows(kind) == (whole if is_done else before)
    assert publish(subset, tables.url(kind)).startswith("already published" if is_done else "published 12 pairs")
    assert tables.rows(kind) == whole
    assert tables.num_commits(kind) == (2 if before else 1)


def lost_answer(kind: str) -> Exception:
    from deltalake.exceptions import CommitFailedError
    from lance.commit import CommitConflictError
    from pyiceberg.exceptions import CommitStateUnknownException

    return {"iceberg": CommitStateUnknownException, "delta": CommitFailedError, "lance": CommitConflictError}[kind]()


@pytest.mark.parametrize(("kind", "seam", "age"), LOST)
def test_commit_whose_answer_is_lost_is_found(kind: str, seam: str, age: str, tables: Tables, subset: str, monkeypatch):
    fail_once(monkeypatch, seam, "after", lost_answer(kind))
    assert publish(subset, tables.url(kind)).startswith("published in the meantime, nothing changed")
    assert tables.num_commits(kind) == 1


@pytest.mark.parametrize(("kind", "seam", "age"), LOST)
def test_busy_store_is_temporary_and_the_rerun_commits(
    kind: str, seam: str, age: str, tables: Tables, subset: str, monkeypatch
):
    fail_once(monkeypatch, seam, "before", OSError("Generic S3 error: 503 Slow Down for key=canary"))
    with pytest.raises(TemporaryError) as caught:
        publish(subset, tables.url(kind))
    assert "canary" not in str(caught.value)
    assert publish(subset, tables.url(kind)).startswith("published 12 pairs")
    assert tables.num_commits(kind) == 1


@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize("kind", KINDS)
def test_of_publishers_at_once_one_commits(
    kind: str, age: str, tables: Tables, subset: str, other_subset: str, monkeypatch
):
    if age == "old":
        publish(other_subset, tables.url(kind))
    num_before = tables.num_commits(kind) if age == "old" else 0
    all_have_looked = threading.Barrier(3)
    have_looked: set[int] = set()

    def look(*args) -> None:
        if threading.get_ident() not in have_looked:
            have_looked.add(threading.get_ident())
            all_have_looked.wait()
        check_columns(*args)

    monkeypatch.setattr("pipeline.exports.tables.publish.check_columns", look)
    with ThreadPoolExecutor(3) as pool:
        told = sorted(pool.map(lambda _: publish(subset, tables.url(kind)).split(",")[0], range(3)))
    assert [text.split(":")[0] for text in told] == ["published 12 pairs", *2 * ["published in the meantime"]]
    assert tables.num_commits(kind) == num_before + 1
    assert len(tables.rows(kind)) == 12 + (7 if age == "old" else 0)


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize("kind", KINDS)
def test_commit_of_others_in_between(kind: str, mode: str, tables: Tables, subset: str, other_subset: str, monkeypatch):
    publish(other_subset, tables.url(kind))
    others = [None]

    def look(*args) -> None:
        check_columns(*args)
        while others:
            others.pop()
            tables.append(kind, pa.Table.from_pylist([good_rows()[0] | {"id": "by others"}], schema=SCHEMA))

    monkeypatch.setattr("pipeline.exports.tables.publish.check_columns", look)
    assert publish(subset, tables.url(kind), mode=mode).startswith("published 12 pairs")
    assert len(tables.rows(kind)) == (20 if mode == "append" else 12)


def test_output_table_gets_each_subset_of_a_sweep(tables: Tables, scored: str, tmp_path: Path):
    sweep = [{"name": f"best-{k}", "select": {"k": k}} for k in (3, 5)]
    output = {"path": str(tmp_path / "out"), "table": {"kind": "iceberg", "path": "local/prefs.pairs"}}
    config = {"scored": scored, "select": {"k": 1}, "metric": {"name": "explicit"}, "output": output, "sweep": sweep}
    assert "\n".join(select_only(parse_config(config))).count("published 3 pairs") == 1
    assert "\n".join(select_only(parse_config(config))).count("already published") == 2
    assert tables.catalog().load_table("prefs.pairs_best_5").scan().to_arrow().num_rows == 5
    output["table"]["path"] = "local/nowhere.pairs"
    with pytest.raises(StorageError, match="no namespace nowhere"):
        list(select_only(parse_config({**config, "output": {**output, "path": str(tmp_path / "new")}})))
    assert not [*(tmp_path / "new").rglob("*.json")]
