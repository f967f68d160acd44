"""Inspection tells what a source is, and never what its rows say."""

import fsspec
import pytest

from pipeline.errors import SourceError
from pipeline.sources.inspect import Figures, inspect_source, render
from tests.sources import layouts as to

FS = fsspec.filesystem("file")


def inspected(folder, rows, **kwargs):
    to.write_jsonl(folder / "a.jsonl", rows)
    return inspect_source(FS, str(folder), **kwargs)


def test_shapes_lengths_scores_and_drops_are_counted(tmp_path):
    rows = [{**to.pair(prompt="x" * n), "score_chosen": 1.0, "score_rejected": 0.5} for n in range(1, 101)]
    rows += [{**to.LONG_PAIR, "tools": [{"name": "f"}]}, {**to.pair(), "rejected": None}]
    found = inspected(tmp_path, rows)
    assert (found.format, found.num_files, found.num_rows, found.num_sampled, found.pairs.num_pairs) == (
        ("messages", 1, 102, 102, 101)
    )  # fmt: skip
    assert found.pairs.chars["prompt"] == Figures(least=1, median=51, p95=95, most=100)
    assert found.pairs.turns["prompt"] == Figures(least=1, median=1, p95=1, most=4)
    assert (found.pairs.num_with_system, found.pairs.num_with_tools) == (1, 1)
    assert found.drop_reasons == {"null_field": 1}
    assert found.score_columns == ("score_chosen", "score_rejected")
    assert found.problems == ()


def test_sample_size_bounds_what_is_looked_at(tmp_path):
    found = inspected(tmp_path, [to.pair(prompt=str(n)) for n in range(50)], sample_rows=9)
    assert (found.num_rows, found.num_sampled) == (50, 9)


def test_text_of_rows_is_never_shown(tmp_path):
    secret = to.pair("prompt-canary", "chosen-canary", "rejected-canary")
    for row in (secret, to.as_strings(secret), to.as_transcript(secret), {"text": "canary"}):
        assert "canary" not in render(inspected(tmp_path, [row, {**row, "chosen": 3}]))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"text": "x"}], "of no known format"),
        ([{**to.as_transcript(to.pair()), "prompt": "x"}], "strings or transcript"),
        ([to.pair()] * 3, "2 pairs of the sample repeat an earlier one"),
        ([{**to.as_binarized(to.pair()), "prompt": "another"}], "in 1 sampled rows the prompt text is no turn"),
        ([{**to.pair(), "rejected": to.pair()["chosen"]}], "no row of the sample yields a pair"),
        (
            [{**to.pair(), "score_chosen": 1, "score_rejected": 0, "chosen_rating": 1, "rejected_rating": 0}],
            "2 spellings of rewards",
        ),
    ],
)
def test_problem_is_told(tmp_path, rows, problem):
    found = inspected(tmp_path, rows)
    assert problem in "\n".join(found.problems)
    assert problem in render(found)


def test_bad_files_are_an_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(SourceError, match="0 bytes"):
        inspect_source(FS, str(tmp_path))
