"""What a selection survives: kill -9 while it writes files, and another driver that writes the same subset."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import Storage
from pipeline.steps.select import prepare_select, select_subsets
from tests.steps import scored_data as data
from tests.steps.commands import finish, kill_everything, start, started_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ONE_ROW_A_FILE = {"output": {"rows_per_file": 1}}


def num_files(output: Path) -> int:
    return len([path for path in output.glob("*/**/*-of-*") if not path.name.startswith(".")])


@pytest.fixture(scope="module")
def expected(scored: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("whole") / "subset"
    select_subsets(prepare_select(data.select_config(scored, output, **ONE_ROW_A_FILE)))
    assert num_files(output) > 200
    return data.objects(output)


@pytest.mark.parametrize(
    ("engine", "num_kills"), [("plain", 2), pytest.param("ray", 1, marks=[pytest.mark.ray, pytest.mark.soak])]
)
def test_selection_that_was_killed_ends_as_if_it_had_not_been(
    engine: str, num_kills: int, scored: str, expected: dict[str, bytes], tmp_path: Path
):
    output = tmp_path / "subset"
    sections = data.sections(scored, output, select={"engine": engine}, **ONE_ROW_A_FILE)
    path = data.write_config(tmp_path / "config.yaml", sections)
    written = [0]
    for _ in range(num_kills):
        before = written[-1]
        kill_everything(started_until("select", path, lambda: num_files(output) > before + 4))  # noqa: B023
        written.append(num_files(output))
        assert not (output / "_SUCCESS.json").exists()
    assert written == sorted(set(written))
    assert written[-1] < len(expected)
    finish("select", data.write_config(tmp_path / "plain.yaml", data.sections(scored, output, **ONE_ROW_A_FILE)))
    assert data.objects(output) == expected


def test_two_drivers_at_once_write_one_subset(scored: str, expected: dict[str, bytes], tmp_path: Path):
    output = tmp_path / "subset"
    paths = [
        data.write_config(tmp_path / f"{i}.yaml", data.sections(scored, output, **ONE_ROW_A_FILE)) for i in range(2)
    ]
    drivers = [start("select", path) for path in paths]
    assert [driver.wait(timeout=600) for driver in drivers] == [0, 0], [
        path.with_suffix(".log").read_text()[-2000:] for path in paths
    ]
    assert data.objects(output) == expected


def test_file_of_other_content_in_the_way_is_named_and_left_alone(scored: str, scored_rows: pa.Table, tmp_path: Path):
    output = tmp_path / "subset"
    config = data.select_config(scored, output)
    select_subsets(prepare_select(config))
    for name in ("_SUCCESS.json", "report.json"):
        (output / name).unlink()
    victim = sorted((output / "parquet").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    before = victim.read_bytes()
    path = data.write_config(tmp_path / "config.yaml", data.sections(scored, output))
    process = start("select", path)
    assert process.wait(timeout=300) == 1
    log = path.with_suffix(".log").read_text()
    assert victim.name in log
    assert "Traceback" not in log
    assert victim.read_bytes() == before
    assert not (output / "_SUCCESS.json").exists()


def test_scored_part_that_changed_is_noticed(scored_rows: pa.Table, tmp_path: Path):
    scored = data.write_scored(tmp_path / "scored", Storage(), scored_rows, 100)
    part = tmp_path / "scored" / "parts" / "00000001.parquet"
    damaged = bytearray(part.read_bytes())
    damaged[200] ^= 16
    part.write_bytes(bytes(damaged))
    path = data.write_config(tmp_path / "config.yaml", data.sections(scored, tmp_path / "subset"))
    assert start("select", path).wait(timeout=300) == 1
    log = path.with_suffix(".log").read_text()
    assert "00000001.parquet" in log
    assert json.loads((tmp_path / "scored" / "_SUCCESS.json").read_text())["num_rows"] == scored_rows.num_rows
    assert not (tmp_path / "subset" / "_SUCCESS.json").exists()
