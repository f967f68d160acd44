"""Publish to real tables on local disk: one commit whatever happens, nothing twice, and read back as the same rows."""

import datetime
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline import publish
from pipeline.cli import app
from pipeline.commands import select_only
from pipeline.config import parse_config
from pipeline.errors import ConfigError, SchemaError, StorageError, TemporaryError
from pipeline.exports.tables.table import check_columns
from tests.exports.conftest import SCHEMA, by_id, good_rows, write_subset
from tests.exports.local_tables import KINDS, Killed, Tables, fail_once

SEAMS = [
    ("iceberg", "pyiceberg.catalog.sql.SqlCatalog.commit_table", "new"),
    ("iceberg", "pyiceberg.catalog.sql.SqlCatalog.commit_table", "old"),
    ("delta", "pipeline.exports.tables.rows.create_from_file", "old"),
    ("delta", "pipeline.exports.tables.delta.create_table_with_add_actions", "new"),
    ("delta", "deltalake.DeltaTable.create_write_transaction", "old"),
    ("iceberg", "pyiceberg.catalog.sql.SqlCatalog.commit_table", "partition"),
    ("delta", "pipeline.exports.tables.rows.create_from_file", "partition"),
    ("delta", "deltalake.DeltaTable.create_write_transaction", "partition"),
    ("lance", "pipeline.exports.tables.lance.write_fragments", "new"),
    ("lance", "lance.LanceDataset.commit", "new"),
    ("lance", "lance.LanceDataset.commit", "old"),
]
"""What changes storage, by kind of table, when the table is new or old or a partition of it is replaced."""
LOST = [case for case in SEAMS if case[2] == "new" and "write" not in case[1]]
"""The commits among them."""

PARTITIONED = ["iceberg", "delta"]
DAY = {"mode": "replace", "partition": {"day": "2026-11-29"}}


def of_day(day: int, names: Sequence[str]) -> pa.Table:
    """Rows of others, in a table with the day of each."""
    rows = [good_rows()[0] | {"id": name, "day": datetime.date(2026, 11, day)} for name in names]
    return pa.Table.from_pylist(rows, schema=SCHEMA.append(pa.field("day", pa.date32())))


def make_table(age: str, kind: str, tables: Tables, other_subset: str) -> dict[str, Any]:
    """A table of this age; how to publish there."""
    if age == "old":
        publish(other_subset, tables.url(kind))
    if age == "partition":
        tables.create(kind, of_day(1, []).schema, "day")
        tables.append(kind, of_day(28, ["yesterday"]))
        publish(other_subset, tables.url(kind), **DAY)
    return DAY if age == "partition" else {}


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
    options = make_table(age, kind, tables, other_subset)
    before = tables.rows(kind)
    num_before = tables.num_commits(kind) if before else 0
    fail_once(monkeypatch, seam, when, Killed())
    with pytest.raises(Killed):
        publish(subset, tables.url(kind), **options)
    is_done = when == "after" and not seam.endswith(("create_from_file", "write_fragments"))
    stay = [row for row in before if not options or row["id"] == "yesterday"]
    added = [row | {"day": datetime.date(2026, 11, 29)} if options else row for row in by_id(good_rows())]
    whole = sorted([*stay, *added], key=lambda row: row["id"])
    assert tables.rows(kind) == (whole if is_done else before)
    told = publish(subset, tables.url(kind), **options)
    assert told.startswith("already published" if is_done else "published 12 pairs")
    assert tables.rows(kind) == whole
    assert tables.num_commits(kind) == num_before + 1


@pytest.mark.parametrize("kind", PARTITIONED)
def test_partition_is_replaced_and_appended_to(kind: str, tables: Tables, subset: str, other_subset: str):
    def told(rows: str, **options: Any) -> str:
        return publish(rows, tables.url(kind), **{**DAY, **options}).split(":")[0]

    make_table("partition", kind, tables, other_subset)
    yesterday = tables.files(kind, day="2026-11-28")
    assert len(yesterday) == 1
    assert told(subset) == "published 12 pairs"
    num_commits = tables.num_commits(kind)
    tables.append(kind, of_day(27, ["the day before"]))
    assert told(subset) == "already published, nothing changed"
    assert told(subset, mode="append") == "already published, nothing changed"
    assert told(other_subset, mode="append") == "published 7 pairs"
    assert told(other_subset, partition={"day": "2026-11-30"}) == "published 7 pairs"
    assert told(other_subset, mode="append") == "already published, nothing changed"
    assert len(tables.files(kind, day="2026-11-29")) == 1 + len(tables.files(kind, day="2026-11-30"))
    assert told(subset) == "published 12 pairs"
    assert told(other_subset, partition={"day": "2026-11-30"}) == "already published, nothing changed"
    assert told(other_subset, mode="append") == "published 7 pairs"
    tables.append(kind, of_day(29, ["by others"]))
    assert told(subset) == "published 12 pairs"
    assert tables.num_commits(kind) == num_commits + 7
    found = [(row["day"].day, row["id"]) for row in tables.rows(kind) if not row["id"].startswith("other")]
    expected = [(27, "the day before"), (28, "yesterday"), *((29, row["id"]) for row in good_rows())]
    assert sorted(found) == sorted(expected)
    assert tables.files(kind, day="2026-11-28") == yesterday


@pytest.mark.parametrize("kind", PARTITIONED)
def test_partition_of_several_columns_and_types(kind: str, tables: Tables, subset: str):
    parts = [("round", pa.int32(), "07"), ("is_test", pa.bool_(), "false"), ("label", pa.string(), "it's / 50% é=1")]
    columns = [field for field in SCHEMA if field.name != "label"]
    tables.create(kind, pa.schema([*columns, *(part[:2] for part in parts)]), *(name for name, *_ in parts))
    partition = {name: text for name, _, text in parts}
    rows = [row | {"label": partition["label"]} for row in good_rows()]
    labelled = write_subset(str(tables.folder / "labelled"), rows, fingerprint={"scored": "labelled"})
    for mode in ("append", "replace", "replace"):
        told = publish(labelled, tables.url(kind), mode=mode, partition=partition)
        assert told.startswith("published" if mode == "append" else "already published")
    other = {**partition, "round": "8"}
    assert publish(labelled, tables.url(kind), mode="replace", partition=other).startswith("published 12 pairs")
    expected = [{**row, "round": number, "is_test": False} for row in by_id(rows) for number in (7, 8)]
    assert sorted(tables.rows(kind), key=lambda row: (row["id"], row["round"])) == expected
    with pytest.raises(SchemaError, match=r"rows have another label, such as row \w+"):
        publish(subset, tables.url(kind), partition=partition)


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


@pytest.mark.parametrize(
    ("kind", "age"), [*itertools.product(KINDS, ["new", "old"]), *((kind, "partition") for kind in PARTITIONED)]
)
def test_of_publishers_at_once_one_commits(
    kind: str, age: str, tables: Tables, subset: str, other_subset: str, monkeypatch
):
    options = make_table(age, kind, tables, other_subset)
    num_before = 0 if age == "new" else tables.num_commits(kind)
    all_have_looked = threading.Barrier(3)
    have_looked: set[int] = set()

    def look(*args) -> None:
        if threading.get_ident() not in have_looked:
            have_looked.add(threading.get_ident())
            all_have_looked.wait()
        check_columns(*args)

    monkeypatch.setattr("pipeline.exports.tables.publish.check_columns", look)
    with ThreadPoolExecutor(3) as pool:
        told = sorted(pool.map(lambda _: publish(subset, tables.url(kind), **options).split(",")[0], range(3)))
    assert [text.split(":")[0] for text in told] == ["published 12 pairs", *2 * ["published in the meantime"]]
    assert tables.num_commits(kind) == num_before + 1
    assert len(tables.rows(kind)) == 12 + {"new": 0, "old": 7, "partition": 1}[age]


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


def test_partition_by_config_and_by_command(tables: Tables, scored: str, tmp_path: Path):
    def selected(folder: str, **output: Any) -> str:
        output["path"] = str(tmp_path / folder)
        config = {"scored": scored, "select": {"k": 3}, "metric": {"name": "explicit"}, "output": output}
        return "\n".join(select_only(parse_config(config)))

    selected("first")
    columns = pq.read_schema(next((tmp_path / "first" / "parquet").iterdir()))
    table = {"kind": "delta", "path": str(tmp_path / "delta"), **DAY, "partition": {"day": datetime.date(2026, 11, 29)}}
    with pytest.raises(ConfigError, match="there is no table yet"):
        selected("second", table=table)
    assert not [*(tmp_path / "second").rglob("*.json")]
    tables.create("delta", columns.append(pa.field("day", pa.date32())), "day")
    assert "published 3 pairs" in selected("second", table=table)
    words = ["publish", str(tmp_path / "first"), tables.url("delta"), "--mode", "replace", "--partition"]
    assert "already published" in CliRunner().invoke(app, [*words, "day=2026-11-29"], catch_exceptions=False).stdout
    with pytest.raises(ConfigError, match="wanted COLUMN=VALUE"):
        CliRunner().invoke(app, [*words, "day"], catch_exceptions=False)
