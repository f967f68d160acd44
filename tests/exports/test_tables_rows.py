"""Which rows and columns a table gets, and which tables are refused."""

import datetime
import decimal
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import publish, select
from pipeline.config import Storage
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import ConfigError, SchemaError, StorageError
from tests.exports.conftest import SCHEMA, by_id, good_rows, write_subset
from tests.exports.local_tables import KINDS, Killed, Tables, fail_once


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


def test_rows_of_one_split(tables: Tables, scored: str, tmp_path: Path):
    select(scored, k=8, metric="explicit", split={"test": 0.5}).write(tmp_path / "subset")
    told = publish(tmp_path / "subset", tables.url("delta"))
    num_train, num_test = len(tables.rows("delta")), int(told.split("not published: ")[1].split()[0])
    assert num_train > 0 < num_test
    assert num_train + num_test == 8
    assert publish(tmp_path / "subset", tables.url("delta"), split="test").startswith(f"published {num_test} pairs")
    assert len({row["id"] for row in tables.rows("delta")}) == 8
    with pytest.raises(ConfigError, match="no split dev; it has test, train"):
        publish(tmp_path / "subset", tables.url("delta"), split="dev")


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


def test_table_with_rules_of_its_own_is_refused(tables: Tables, subset: str):
    tables.create("delta", pa.schema([field.with_nullable(field.name != "id") for field in SCHEMA]))
    with pytest.raises(StorageError, match="columns that must not be null"):
        publish(subset, tables.url("delta"))


@pytest.mark.parametrize("kind", ["iceberg", "delta"])
def test_partitions_that_are_refused(kind: str, tables: Tables, subset: str):
    def refused(words: str, error: type[Exception] = ConfigError, **options) -> None:
        with pytest.raises(error, match=words):
            publish(subset, tables.url(kind), **options)

    refused("there is no table yet.* must be created before", partition={"day": "2026-11-29"})
    tables.create(kind, pa.schema([*SCHEMA, pa.field("day", pa.date32())]), "day")
    refused("is partitioned by day, and the partition that is given names no column", mode="replace")
    refused("names label", partition={"label": "a"})
    refused("day is date32.*, and 2026-11-31 is none", partition={"day": "2026-11-31"})
    with pytest.raises(ConfigError, match="Lance has no partitions"):
        publish(subset, tables.url("lance"), partition={"day": "2026-11-29"})


def test_tables_whose_partitions_are_no_plain_values_are_refused(tables: Tables, subset: str):
    from pyiceberg.transforms import BucketTransform

    tables.create("iceberg", SCHEMA)
    with tables.open("iceberg").update_spec() as spec:
        spec.add_field("id", BucketTransform(4), "shard")
    with pytest.raises(StorageError, match=r"is partitioned by shard \(bucket\[4\]\)"):
        publish(subset, tables.url("iceberg"), partition={"shard": "1"})
    tables.create("delta", SCHEMA, "potential")
    with pytest.raises(SchemaError, match="partitioned by potential, which is double"):
        publish(subset, tables.url("delta"), partition={"potential": "1"})


def test_files_of_before_an_iceberg_table_was_partitioned_are_refused(tables: Tables, subset: str):
    """They may hold rows of the partition among others."""
    publish(subset, tables.url("iceberg"))
    with tables.open("iceberg").update_spec() as spec:
        spec.add_identity("id")
    with pytest.raises(StorageError, match="files of before it was partitioned so"):
        publish(subset, tables.url("iceberg"), mode="replace", partition={"id": good_rows()[3]["id"]})
