"""A run that dies just before or after any of its commits, and is run again, ends as if nothing had happened."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import config
from pipeline.data import files, parts
from pipeline.data import run as runs
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run
from pipeline.data.sealed import sealed
from tests.data.tables import FINGERPRINT, plan_for, scored_table, spec_of

SHARDS = [scored_table([f"row-{i}-{j}" for j in range(6)], dropped={i}) for i in range(4)]


class Death(BaseException):
    """The end of a process, which no handler sees."""


def score_and_select(folder: Path) -> None:
    run = Run.claim(Place.open(str(folder / "scored"), config.Storage()), plan_for([6, 6, 6, 6]))
    for index in run.pending():
        parts.commit_part(run.place, spec_of(run.plan, index), SHARDS[index])
    dataset = Dataset(run.place, run.finish({}))
    place = Place.open(str(folder / "subset"), config.Storage())
    if Dataset.find(place, SUBSET) is None:
        columns = ["id", "prompt", "chosen", "rejected"]
        plan = Plan(
            kind=SUBSET,
            fingerprint=FINGERPRINT,
            config={},
            schema=pa.schema([dataset.schema.field(name) for name in columns]),
            shards=files.file_shards({"train": dataset.num_kept}, 8),
            formats=("hf", "parquet"),
        )
        subset = Run.claim(place, plan)
        written = files.write_files(subset, dataset.tables(columns))
        files.finish_files(subset, written, {"report.json": sealed({})}, {})


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def dying_at(
    number: int, *, after: bool, counter: Iterator[int]
) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def wrap(create: Callable[..., bool]) -> Callable[..., bool]:
        def commit(*arguments: object) -> bool:
            place = next(counter)  # of one thread: the formats of a file are created side by side
            if place == number and not after:
                raise Death
            won = create(*arguments)
            if place == number:
                raise Death
            return won

        return commit

    return wrap


@pytest.mark.parametrize("after", [False, True])
def test_death_at_any_commit_is_made_good_by_running_again(tmp_path, after):
    score_and_select(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    number, died = 0, True
    while died:
        number += 1
        folder = tmp_path / f"dying-{number}"
        wrap = dying_at(number, after=after, counter=itertools.count(1))
        with pytest.MonkeyPatch.context() as patch:
            for module in (runs, parts, files):
                patch.setattr(module, "create", wrap(module.create))
            patch.setattr(files, "create_from_file", wrap(files.create_from_file))
            try:
                score_and_select(folder)
                died = False
            except Death:
                died = True
        score_and_select(folder)
        assert contents(folder) == whole
    assert number == len(whole) + 1  # every object of the two datasets was the place of a death
