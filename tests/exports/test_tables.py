"""Publish to real tables on local disk: one commit whatever happens, nothing twice, and read back as the same rows."""

import datetime
import decimal
import pkgutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import publish
from pipeline import score as score_rows
from pipeline.commands import select_only
from pipeline.config import Storage, parse_config
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import ConfigError, SchemaError, StorageError, TemporaryError
from pipeline.exports.tables.table import check_columns
from tests.exports.conftest import SCHEMA, good_rows, write_subset

KINDS = ["iceberg", "delta", "lance"]
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


REWARDS = {"reward_chosen": 1.0, "reward_rejected": 0.0}


class Killed(BaseException):
    """Stands for the end of the process."""


class Tables:
    """Tables of each format below one folder: where they are, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, kind: str) -> str:
        return "iceberg://local/prefs.pairs" if kind == "iceberg" else f"{kind}://{self.folder / kind}"

    def catalog(self):
        from pyiceberg.catalog import load_catalog

        return load_catalog("local", uri=f"sqlite:///{self.folder}/catalog.db", warehouse=f"file://{self.folder}/wh")

    def open(self, kind: str):
        if kind == "iceberg":
            return self.catalog().load_table("prefs.pairs")
        if kind == "delta":
            from deltalake import DeltaTable

            return DeltaTable(self.folder / kind)
        import lance

        return lance.dataset(self.folder / kind)

    def rows(self, kind: str) -> list[dict]:
        """All rows by id; none if there is no table."""
        is_there = (
            self.catalog().table_exists("prefs.pairs")
            if kind == "iceberg"
            else any((self.folder / kind / log).exists() for log in ("_delta_log", "_versions"))
        )
        if not is_there:
            return []
        table = self.open(kind)
        if kind == "iceberg":
            found = table.scan().to_arrow()
        else:
            found = table.to_pyarrow_table() if kind == "delta" else table.to_table()
        return sorted(found.to_pylist(), key=lambda row: row["id"])

    def append(self, kind: str, rows: pa.Table) -> None:
        """As somebody else does."""
        if kind == "iceberg":
            self.open(kind).append(rows)
        elif kind == "delta":
            from deltalake import write_deltalake

            write_deltalake(self.folder / kind, rows, mode="append")
        else:
            import lance

            lance.write_dataset(rows, self.folder / kind, mode="append")

    def num_commits(self, kind: str) -> int:
        table = self.open(kind)
        if kind == "iceberg":
            return len(table.snapshots())
        return table.version() + 1 if kind == "delta" else table.version


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tables:
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    monkeypatch.setenv("PYICEBERG_CATALOG__LOCAL__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LOCAL__WAREHOUSE", f"file://{tmp_path}/wh")
    (tmp_path / "wh").mkdir()
    found = Tables(tmp_path)
    found.catalog().create_namespace("prefs")
    return found


@pytest.fixture(scope="session")
def other_subset(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [row | {"id": f"other-{row['id']}"} for row in good_rows(7)]
    fingerprint = {"scored": "def", "select": {"seed": 1}}
    return write_subset(str(tmp_path_factory.mktemp("subset") / "other"), rows, fingerprint=fingerprint)


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight kept rows and a dropped one."""
    folder = tmp_path_factory.mktemp("scored") / "scored"
    rows = [
        {
            "prompt": f"Question {i}?",
            "chosen": f"good {i}",
            "rejected": f"bad {i}",
            **REWARDS,
            "reward_chosen": float(i),
        }
        for i in range(8)
    ]
    score_rows([*rows, {**rows[0], "chosen": ""}], reward="columns", run={"max_dropped": 1.0}, path=folder)
    return str(folder)


def by_id(rows: list[dict]) -> list[dict]:
    return sorted(pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist(), key=lambda row: row["id"])


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


def fail_once(monkeypatch: pytest.MonkeyPatch, seam: str, when: str, error: BaseException) -> None:
    """The next call of the function fails, before or after it has done its work."""
    owner, _, name = seam.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    real = getattr(owner, name)

    def failing(*args, **kwargs):
        monkeypatch.setattr(owner, name, real)
        if when == "after":
            real(*args, **kwargs)
        raise error

    monkeypatch.setattr(owner, name, failing)


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


@pytest.mark.parametrize("kind", KINDS)
def test_kept_rows_of_a_scored_dataset(kind: str, tables: Tables, scored: str):
    """Its files hold dropped rows too, so others are written."""
    dataset = Dataset.open(Place.open(scored, Storage()))
    assert dataset.manifest.num_dropped == 1
    assert publish(scored, tables.url(kind)).startswith("published 8 pairs")
    found = tables.rows(kind)
    assert {"reward_chosen", "source_row"} <= found[0].keys()
    assert not {"status", "drop_reason"} & found[0].keys()
    ours = dataset.table([*found[0]]).to_pylist()
    assert found == sorted(ours, key=lambda row: row["id"])
    assert publish(scored, tables.url(kind)).startswith("already published")


def test_subset_without_parquet(tables: Tables, subset: str, tmp_path: Path):
    arrow_only = write_subset(str(tmp_path / "arrow"), good_rows(), formats=("hf",))
    assert publish(arrow_only, tables.url("iceberg")).startswith("published 12 pairs")
    assert tables.rows("iceberg") == by_id(good_rows())
    [file] = (tables.folder / "wh").rglob("data/*.parquet")
    assert file.name.startswith("alignpot-")
    assert publish(subset, tables.url("iceberg")).startswith("already published")


def test_version_of_lance_gets_a_tag(tables: Tables, subset: str, other_subset: str, monkeypatch):
    url = tables.url("lance")
    fail_once(monkeypatch, "lance.LanceDataset.commit", "after", Killed())
    with pytest.raises(Killed):
        publish(subset, url, tag="first")
    assert publish(subset, url, tag="first").startswith("published 12 pairs")
    assert publish(subset, url, tag="first").startswith("already published")
    with pytest.raises(StorageError, match="tag first names version 1"):
        publish(other_subset, url, tag="first")
    publish(other_subset, url, mode="replace", tag="second")
    assert tables.num_commits("lance") == 2
    import lance

    assert lance.dataset(tables.folder / "lance", version="first").count_rows() == 12
    assert lance.dataset(tables.folder / "lance", version="second").count_rows() == 7


def test_lance_keeps_indices_and_changed_columns(tables: Tables, subset: str, other_subset: str):
    publish(subset, tables.url("lance"))
    dataset = tables.open("lance")
    dataset.create_scalar_index("id", "BTREE")
    dataset.drop_columns(["label"])
    dataset.add_columns({"label": "id"})
    dataset.delete(f"id = '{good_rows()[0]['id']}'")
    publish(other_subset, tables.url("lance"))
    dataset = tables.open("lance")
    assert dataset.count_rows() == 18
    assert [index.name for index in dataset.describe_indices()] == ["id_idx"]
    assert dataset.count_rows(filter="id like 'other-%'") == 7
    assert dataset.count_rows(filter="label = id") == 11


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_do_not_fit_are_named_before_anything_is_written(kind: str, tables: Tables, subset: str, tmp_path):
    null = pa.schema([*SCHEMA, pa.field("nothing", pa.null())])
    unfit = write_subset(str(tmp_path / "unfit"), good_rows(3), schema=null, fingerprint={"scored": "u"})
    with pytest.raises(SchemaError, match=rf"a table of {kind} cannot hold nothing \(null\)"):
        publish(unfit, tables.url(kind))
    assert {path.name for path in tmp_path.iterdir()} == {"catalog.db", "unfit", "wh"}
    publish(subset, tables.url(kind))
    label = SCHEMA.get_field_index("label")
    changed = SCHEMA.set(label, pa.field("label", pa.int64())).append(pa.field("extra", pa.string()))
    numbered = [row | {"label": 1} for row in good_rows(3)]
    other = write_subset(str(tmp_path / "other"), numbered, schema=changed, fingerprint={"scored": "o"})
    with pytest.raises(SchemaError, match=r"the table lacks extra; other types have label \(.*string, here int64\)"):
        publish(other, tables.url(kind))
    fewer = write_subset(
        str(tmp_path / "fewer"), good_rows(3), schema=SCHEMA.remove(label), fingerprint={"scored": "f"}
    )
    assert publish(fewer, tables.url(kind)).startswith("published 3 pairs")
    assert [row["label"] for row in tables.rows(kind)].count(None) == 3
    assert len(tables.rows(kind)) == 15


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_the_source_are_as_they_were(kind: str, tables: Tables, tmp_path: Path):
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
    values = {
        "number": (pa.int32(), -1),
        "share": (pa.float32(), 0.5),
        "bytes": (pa.large_binary(), b"\xff"),
        "day": (pa.date32(), moment.date()),
        "price": (pa.decimal128(9, 2), decimal.Decimal("1.25")),
        "time": (pa.timestamp("us"), moment),
        "instant": (pa.timestamp("us", "UTC"), moment.replace(tzinfo=datetime.UTC)),
        "word": (pa.dictionary(pa.int32(), pa.string()), "é"),
        "map": (pa.map_(pa.string(), pa.int64()), [("a", 1)]),
        "nested": (pa.struct([("a", pa.list_(pa.struct([("b", pa.bool_())])))]), {"a": [{"b": True}, {"b": None}]}),
    }
    schema = pa.schema([SCHEMA.field("id"), *(pa.field(name, each) for name, (each, _) in values.items())])
    given = [
        {"id": "full", **{name: value for name, (_, value) in values.items()}},
        {"id": "none", **dict.fromkeys(values)},
    ]
    parquet = {"schema": schema, "formats": ("parquet",), "rows_per_file": 1}
    write_subset(str(tmp_path / "a # folder"), given, **parquet)
    publish(tmp_path / "a # folder", tables.url(kind))
    assert tables.rows(kind) == given
    other = write_subset(str(tmp_path / "other"), given, **parquet, fingerprint={"scored": "other"})
    publish(other, tables.url(kind))
    assert len(tables.rows(kind)) == 4


def test_targets_that_are_refused(tables: Tables, subset: str, monkeypatch):
    def refused(url: str, error: type[Exception], words: str, **options) -> None:
        with pytest.raises(error, match=words):
            publish(subset, url, **options)

    refused("s3://bucket/table", ConfigError, "wanted iceberg://CATALOG/NAMESPACE.TABLE")
    refused("iceberg://nowhere/prefs.pairs", ConfigError, "PYICEBERG_CATALOG__NOWHERE__URI")
    refused("iceberg://local/others.pairs", StorageError, "create namespace others")
    refused(f"delta://{subset}", ConfigError, "holds a dataset of alignpot")
    refused(tables.url("delta"), ConfigError, "tag is for lance", tag="a")
    refused(tables.url("delta"), ConfigError, "mode: wanted append or replace", mode="overwrite")
    monkeypatch.setitem(sys.modules, "deltalake", None)
    monkeypatch.delitem(sys.modules, "pipeline.exports.tables.delta", raising=False)
    refused(tables.url("delta"), ConfigError, r"pip install 'alignpot\[tables\]'")


def test_table_with_partitions_is_refused(tables: Tables, subset: str):
    from deltalake import DeltaTable, Schema

    DeltaTable.create(tables.folder / "delta", schema=Schema.from_arrow(SCHEMA), partition_by=["label"])
    with pytest.raises(StorageError, match="has partitions"):
        publish(subset, tables.url("delta"))


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
