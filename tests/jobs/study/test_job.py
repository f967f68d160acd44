import json

import pytest

from jobs.study import __main__ as job
from pipeline.metrics.ratio import RATIO_METHODS
from tests.jobs.study.test_scored import columns, dataset


def test_the_quick_study_prints_tables_and_writes_json(tmp_path, capsys):
    output = tmp_path / "study.json"
    job.main(["--quick", "--output", str(output)])
    out = capsys.readouterr().out
    results = json.loads(output.read_text())
    assert all(f"| {method} |" in out for method in RATIO_METHODS)
    assert results["size"]["num_seeds"] == results["num_seeds"] == 2
    assert {standing["rule"] for standing in results["standings"]} > set(RATIO_METHODS)


def test_a_scored_dataset_is_studied_as_it_is(tmp_path, capsys):
    path, output = dataset(tmp_path, columns()), tmp_path / "study.json"
    job.main(["--scored", path, "--fraction", "0.25", "--output", str(output)])
    assert "25% selected" in capsys.readouterr().out
    assert [effects["path"] for effects in json.loads(output.read_text())] == [path]


def test_an_error_of_ours_is_one_line_and_its_exit_code(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        job.main(["--scored", str(tmp_path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("SourceError: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--seeds", "1"], ["--fraction", "0"], ["--objective", "none-such"]])
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        job.main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
