"""Publish to real tables on local disk: one commit whatever happens, nothing twice, and read back as the same rows."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import publish
from tests.exports.conftest import SCHEMA, good_rows, write_subset

KINDS = ["iceberg", "delta", "lance"]


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
        table = self.open(kind)
        found = {
            "iceberg": lambda: table.scan().to_arrow(),
            "delta": lambda: table.to_pyarrow_table(),
            "lance": lambda: table.to_table(),
        }
        return sorted(found[kind]().to_pylist(), key=lambda row: row["id"])

    def num_commits(self, kind: str) -> int:
        table = self.open(kind)
        counts = {
            "iceberg": lambda: len(table.snapshots()),
            "delta": lambda: table.version() + 1,
            "lance": lambda: table.version,
        }
        return counts[kind]()


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
