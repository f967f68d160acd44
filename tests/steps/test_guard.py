"""One row neither ends nor hangs a run: what a stage fails on is dropped, unless the process itself is broken."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import Storage
from pipeline.data.place import Place
from pipeline.errors import AlignpotError, ModelError
from pipeline.on_ray.deaths import Deaths
from pipeline.steps.guard import guarded
from pipeline.steps.rows import kept_rows
from pipeline.steps.work import Apply, Stage


def rows(numbers: range) -> pa.Table:
    count = len(numbers)
    texts = {name: pa.array([value] * count, pa.string()) for name, value in (("status", "kept"), ("drop_stage", None))}
    return pa.table(
        {"id": [f"row-{n}" for n in numbers], "number": [*numbers], **texts, "drop_reason": texts["drop_stage"]}
    )


def double(failing: Callable[[list[int]], BaseException | None]) -> Apply:
    """A stage that adds a column, and raises what `failing` gives for the rows it is to score."""

    def apply(table: pa.Table) -> pa.Table:
        todo = kept_rows(table)
        error = failing(table["number"].take(todo).to_pylist())
        if error is not None:
            raise error
        values = [2 * n if i in todo else None for i, n in enumerate(table["number"].to_pylist())]
        return table.append_column("double", pa.array(values, pa.int64()))

    return apply


def run(failing: Callable[[list[int]], BaseException | None], *tables: pa.Table) -> list[dict]:
    apply = guarded(Stage(name="policy", build=lambda: double(failing)), timeout_s=60.0).build()
    return [row for table in tables for row in apply(table).to_pylist()]


@pytest.mark.parametrize("error", [RuntimeError("kernel"), RecursionError(), MemoryError(), ZeroDivisionError()])
@pytest.mark.parametrize("bad", [{0}, {9}, {3, 4}])
def test_rows_that_a_stage_fails_on_are_dropped_and_the_others_kept(bad: set[int], error: Exception, caplog):
    found = run(lambda numbers: error if bad & {*numbers} else None, rows(range(10)))
    assert [row["number"] for row in found] == [*range(10)]
    assert {row["number"] for row in found if row["status"] == "dropped"} == bad
    assert all((row["double"] is None) == (row["number"] in bad) for row in found)
    assert {row["drop_reason"] for row in found if row["number"] in bad} == {"stage_error"}
    assert all(f"row-{number}" in caplog.text for number in bad)


def test_process_that_is_broken_ends_the_run_rather_than_dropping_what_is_left():
    broken = []

    def poison(numbers: list[int]) -> Exception | None:
        broken.extend(n for n in numbers if n == 14)
        return RuntimeError("device-side assert") if broken else None

    with pytest.raises(RuntimeError, match="assert"):
        run(poison, rows(range(10)), rows(range(10, 20)))


def test_stage_that_works_for_no_row_ends_the_run():
    with pytest.raises(ValueError, match="never"):
        run(lambda numbers: ValueError("never") if numbers else None, rows(range(4)))


def test_error_of_ours_is_passed_on_at_once():
    calls = []

    def refuse(numbers: list[int]) -> Exception:
        calls.append(numbers)
        return ModelError("two logits")

    with pytest.raises(ModelError):
        run(refuse, rows(range(4)))
    assert len(calls) == 1


HANGS = """
import sys, time
from pipeline.steps.guard import guarded
from pipeline.steps.work import Stage
from tests.steps.test_guard import rows

guarded(Stage(name="policy", build=lambda: lambda table: {hang}), timeout_s=0.5).build()(rows(range(2)))
"""


def test_stage_that_hangs_ends_its_process_with_a_line_that_says_so():
    ended = subprocess.run(
        [sys.executable, "-c", HANGS.format(hang="time.sleep(600)")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == AlignpotError.exit_code
    assert ended.stderr.startswith("AlignpotError: stage policy was still busy with one shard after 0.5 s")
    assert "Traceback" not in ended.stderr


class Death(BaseException):
    """The end of a worker, which no handler sees."""


def test_worker_that_was_started_again_finds_the_row_in_two_more_deaths(tmp_path: Path):
    place = Place.open(str(tmp_path), Storage())
    deaths, num_deaths = Deaths(dataset=place), 0
    apply = double(lambda numbers: Death() if 5 in numbers else None)
    while True:
        try:
            found = deaths.apply(3, "policy", apply, rows(range(8))).to_pylist()
            break
        except Death:
            num_deaths += 1
    assert num_deaths == 2
    assert [row["number"] for row in found if row["drop_reason"] == "killed_worker"] == [5]
    assert [row["double"] for row in found] == [0, 2, 4, 6, 8, None, 12, 14]


def test_death_by_chance_drops_nothing(tmp_path: Path):
    place = Place.open(str(tmp_path), Storage())
    deaths, chance = Deaths(dataset=place), iter([Death()])
    apply = double(lambda numbers: next(chance, None))
    with pytest.raises(Death):
        deaths.apply(3, "policy", apply, rows(range(8)))
    assert all(row["status"] == "kept" for row in deaths.apply(3, "policy", apply, rows(range(8))).to_pylist())
