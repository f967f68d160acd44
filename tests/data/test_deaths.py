"""A run that dies just before or after any of its commits, and is run again, ends as if nothing had happened."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import config
from pipeline.storage import manifest, parts, runs, scored, subset, subset_parts
from pipeline.storage.filesystem import open_filesystem
from tests.storage.tables import FINGERPRINT, plan_for, scored_table

SHARDS = [scored_table([f"row-{i}-{j}" for j in range(6)], dropped={i}) for i in range(4)]


class Death(BaseException):
    """The end of a process, which no handler sees."""


def score_and_select(folder: Path) -> None:
    fs, root = open_filesystem(str(folder / "scored"), config.Storage())
    plan = runs.begin_run(fs, root, plan_for([6, 6, 6, 6]))
    for index in sorted({*range(4)} - parts.committed_parts(fs, root, plan)):
        parts.commit_part(fs, root, plan.part_spec(index), SHARDS[index])
    dataset = scored.ScoredDataset(fs, root, manifest.finish_run(fs, root, plan, {}))
    rows = pa.concat_tables(dataset.tables(["id", "prompt", "chosen", "rejected"]))
    spec = subset.SubsetSpec(
        num_rows=rows.num_rows,
        schema=rows.schema,
        formats=("hf", "parquet"),
        rows_per_file=8,
        fingerprint=FINGERPRINT,
        config={},
        version="0",
    )
    fs, root = open_filesystem(str(folder / "subset"), config.Storage())
    with subset.SubsetWriter(fs, root, spec) as writer:
        if writer.done is None:
            for table in dataset.tables(rows.column_names):
                writer.write(table)
            writer.finish(report={}, extra={})


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def dying_at(number: int, *, after: bool, counter: list[int]) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def wrap(create: Callable[..., bool]) -> Callable[..., bool]:
        def commit(*arguments: object) -> bool:
            counter[0] += 1
            if counter[0] == number and not after:
                raise Death
            won = create(*arguments)
            if counter[0] == number:
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
        wrap = dying_at(number, after=after, counter=[0])
        with pytest.MonkeyPatch.context() as patch:
            for module in (runs, parts, manifest, subset, subset_parts):
                patch.setattr(module, "create", wrap(module.create))
            patch.setattr(subset_parts, "create_from_file", wrap(subset_parts.create_from_file))
            try:
                score_and_select(folder)
                died = False
            except Death:
                died = True
        score_and_select(folder)
        assert contents(folder) == whole
    assert number == len(whole) + 1  # every object of the two datasets was the place of a death
