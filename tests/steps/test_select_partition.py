"""Parquet files in folders by the value of a column, as Hive lays them out: the same rows, and others read them."""

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from pipeline import read_pairs, select
from pipeline import schema as names
from pipeline.config import Storage
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.verify import verify
from pipeline.errors import AlignpotError
from pipeline.steps.select import prepare_select, select_subsets
from tests.steps import scored_data as data

TOPIC = data.TOPIC


def subset(scored: str, path: Path, split: dict[str, float] | None = None, **output: Any) -> Dataset:
    keys = {} if split is None else {"split": split}
    select_subsets(prepare_select(data.select_config(scored, path, select=keys, output=output)))
    return Dataset.open(Place.open(str(path), Storage()), SUBSET)


@pytest.mark.parametrize("split", [None, {"test": 0.3}])
def test_the_rows_are_those_of_no_partition_and_every_reader_finds_them(
    split: dict[str, float] | None, scored: str, tmp_path: Path
):
    plain = subset(scored, tmp_path / "plain", split)
    found = subset(scored, tmp_path / "parts", split, partition_by=TOPIC, rows_per_file=20)
    assert found.splits == plain.splits
    for name in found.splits:
        ours, theirs = (each.of_split(name).table([names.ID, TOPIC]).to_pylist() for each in (found, plain))
        in_order = sorted(theirs, key=lambda row: row[TOPIC] or "__HIVE")  # stable: the order of the source within one
        assert ours == in_order
    folder = tmp_path / "parts" / "parquet"
    assert {each.name for each in folder.iterdir()} == {
        *(f"topic={value}" for value in ("math", "code", "chat")),
        "topic=__HIVE_DEFAULT_PARTITION__",
    }
    for part in [folder / name for name in ("topic=math", "topic=code")]:
        for name in found.splits:
            numbers = sorted(file.stem for file in part.glob(f"{name}-*"))
            assert numbers == [f"{name}-{i:05d}-of-{len(numbers):05d}" for i in range(len(numbers))] != []
    assert all(len(pl.read_parquet(file, hive_partitioning=False)) <= 20 for file in folder.rglob("*.parquet"))
    rows = {(row[names.ID], row[TOPIC]) for part in plain.splits for row in plain.of_split(part).table().to_pylist()}
    arrow = ds.dataset(folder, partitioning="hive").to_table([names.ID, TOPIC]).to_pylist()
    assert {(row[names.ID], row[TOPIC]) for row in arrow} == rows
    polars = pl.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).select(names.ID, TOPIC)
    assert {*polars.rows()} == rows
    asked = f"select id, topic from read_parquet('{folder}/*/*.parquet', hive_partitioning = true)"
    assert {*duckdb.sql(asked).fetchall()} == rows
    math = duckdb.sql(f"{asked} where topic = 'math'").fetchall()
    assert {*math} == {row for row in rows if row[1] == "math"}
    assert "all as written" in verify(Place.open(str(tmp_path / "parts"), Storage()))
    assert {*read_pairs(folder, id_column="id").to_arrow()["id"].to_pylist()} == {
        *plain.of_split("train").table([names.ID])[names.ID].to_pylist()
    }


def test_values_are_escaped_and_stay_inside_the_folder(scored_rows: pa.Table, tmp_path: Path):
    hostile = ["../../up", "a/b=c", "", "50% é"]
    rows = pa.Table.from_pylist([*{row["id"]: row for row in scored_rows.to_pylist()}.values()], data.SCHEMA)
    values = pa.array([hostile[i % len(hostile)] for i in range(rows.num_rows)])
    chosen = select(rows.set_column(rows.schema.get_field_index(TOPIC), TOPIC, values), metric="explicit", fraction=0.5)
    chosen.write(tmp_path / "subset", partition_by=TOPIC)
    folder = tmp_path / "subset" / "parquet"
    assert {each.name for each in folder.iterdir()} == {
        "topic=..%2F..%2Fup", "topic=a%2Fb%3Dc", "topic=", "topic=50%25%20%C3%A9"
    }  # fmt: skip
    read = pl.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=False)
    assert {*read[TOPIC]} == {*hostile}


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"partition_by": "topics"}, ["output.partition_by", "topics"]),
        ({"partition_by": names.PROMPT}, ["output.partition_by", "text, whole numbers"]),
        ({"partition_by": TOPIC, "slim": True}, ["partition_by", "slim: false"]),
        ({"partition_by": TOPIC, "formats": ["hf"]}, ["partition_by", "parquet"]),
    ],
)
def test_what_cannot_name_folders_is_refused(output: dict[str, Any], words: list[str], scored: str, tmp_path: Path):
    with pytest.raises(AlignpotError) as error:
        prepare_select(data.select_config(scored, tmp_path / "subset", output=output))
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "subset").exists()


def test_what_is_not_there_is_refused_for_rows_in_memory_too(tmp_path: Path):
    chosen = select(data.scored_table(8), metric="explicit", k=2)
    with pytest.raises(AlignpotError, match=r"output\.partition_by.*nowhere"):
        chosen.write(tmp_path / "subset", partition_by="nowhere")
    assert not (tmp_path / "subset" / "run.json").exists()
