"""Many small records are held, sealed and read again as a plain list of them would be."""

import json
import pickle
from pathlib import Path

import pytest

from pipeline.config import Storage
from pipeline.data.place import Place
from pipeline.data.records import Records
from pipeline.data.sealed import fingerprint_digest, read_sealed, sealed

SPLITS = [{"split": "test", "num_rows": 2}, {"num_rows": 3}, {"num_rows": 4}]


def shards(number: int) -> list[dict]:
    return [{"index": i, "file": f"ä-{i // 7}.parquet", "kind": "parquet", "first_row": 3 * i} for i in range(number)]


@pytest.mark.parametrize("items", [[], SPLITS, shards(1), shards(4096), shards(20_000)], ids=len)
def test_sealed_records_are_the_bytes_of_a_list_and_come_back(items: list[dict], tmp_path: Path):
    place = Place.open(str(tmp_path / "run.json"), Storage())
    value = {"kind": "scored", "config": {"text": "é😀\n", "files": [{"a": 1}]}, "shards": items, "formats": []}
    data = sealed({**value, "shards": Records.of(items, dict)})
    assert data == sealed(value)
    assert json.dumps(json.loads(data), indent=1, ensure_ascii=False) + "\n" == data.decode()
    layout = json.loads(data)["format"]
    assert json.loads(data)["seal"] == fingerprint_digest({"format": layout, **value})
    for written in (data, json.dumps(json.loads(data)).encode()):  # as we write it, and as somebody else may
        (tmp_path / "run.json").write_bytes(written)
        assert read_sealed(place, records="shards") == value == read_sealed(place)


@pytest.mark.parametrize("items", [SPLITS, shards(10_000)], ids=len)
def test_records_are_a_sequence(items: list[dict]):
    records = Records.of(iter(items), dict)
    assert [*records] == items
    assert [records[i] for i in (0, -1, len(items) // 2)] == [items[i] for i in (0, -1, len(items) // 2)]
    assert records[1:-1] == items[1:-1]
    assert records[4000:4200] == items[4000:4200]
    assert records.where(lambda item: len(str(item)) % 2 == 0) == [item for item in items if len(str(item)) % 2 == 0]
    assert pickle.loads(pickle.dumps(records)) == items
    assert records != items[:-1]
    with pytest.raises(IndexError):
        records[len(items)]


def test_records_take_some_dozen_bytes_each():
    assert sum(
        len(pickle.dumps(Records.of(shards(number), dict))) * sign for number, sign in ((40_960, 1), (0, -1))
    ) < (40 * 40_960)


@pytest.mark.parametrize("items", [[{}], [{"a": 1}, {"a": "b"}], [{"a": 2**70}], [3]], ids=str)
def test_what_is_no_list_of_records_is_refused(items: list):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        Records.of(items, dict)
