"""The function of `run.track` gets what a command did, once, whatever its end."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import run_all, select_only
from pipeline.config import Config
from pipeline.errors import ConfigError, TooManyDroppedError
from tests.observers.conftest import NUM_ROWS, SECRET

PAGE = Path(__file__).parents[2] / "jobs" / "TRACKING.md"
HOOK = """\
import json

def keep(told):
    with open("told.jsonl", "a") as file:
        file.write(json.dumps(told) + "\\n")

def fail(told):
    raise ValueError("no such project")
"""

Job = Callable[..., Config]


@pytest.fixture(autouse=True)
def hook(no_scheduler: None) -> None:
    Path("kept_by_test.py").write_text(HOOK)


def told() -> dict[str, Any]:
    [line] = Path("told.jsonl").read_text().splitlines()
    assert SECRET not in line
    Path("told.jsonl").unlink()
    return dict(json.loads(line))


def test_the_function_gets_config_counts_figures_and_reports(job: Job, tmp_path: Path) -> None:
    track = {"track": "kept_by_test:keep"}
    list(run_all(job(run=track)))
    found = told()
    assert (found["command"], found["status"], found["error"]) == ("run", "complete", None)
    assert found["config"]["select"]["fraction"] == 0.4
    assert found["outputs"] == [str(tmp_path / "scored"), str(tmp_path / "subset")]
    assert found["counts"]["rows_read"] == NUM_ROWS
    assert found["counts"]["rows_selected"] == 8
    assert found["figures"]["threshold"] == 11.5
    assert {"seconds", "all/margin_explicit_mean", "selected/margin_explicit_std"} <= found["figures"].keys()
    [report] = found["reports"].values()
    assert report == {k: v for k, v in json.loads(Path("subset/report.json").read_text()).items() if k in report}
    fingerprint = found["fingerprint"]
    list(run_all(job(run=track)))
    assert told()["fingerprint"] == fingerprint
    sweep = [{"name": "a"}, {"name": "b", "select": {"k": 2}}]
    list(select_only(job(source=None, run=track, sweep=sweep, output={"path": str(tmp_path / "sweep")})))
    found = told()
    assert found["command"] == "select"
    assert (found["counts"]["a/rows_selected"], found["counts"]["b/rows_selected"]) == (8, 2)
    assert len(found["reports"]) == 2


def test_a_failed_run_is_told_too(job: Job) -> None:
    Path("bad.jsonl").write_text(f'{{"prompt": "{SECRET}", "chosen": null, "rejected": "b"}}\n' * 2)
    good = {"prompt": "q", "chosen": "a", "rejected": "b", "reward_chosen": 1.0, "reward_rejected": 0.0}
    with Path("bad.jsonl").open("a") as file:
        file.write(json.dumps(good) + "\n")
    source = {"path": str(Path("bad.jsonl").resolve()), "id_column": None, "passthrough": []}
    with pytest.raises(TooManyDroppedError):
        list(run_all(job(source=source, run={"track": "kept_by_test:keep"})))
    found = told()
    assert found["status"] == "failed"
    assert "2 of 3 rows were dropped" in found["error"]
    assert found["counts"]["rows_dropped"] == 2


def test_an_error_of_the_function_is_told_and_fails_no_run(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pipeline.observers"):
        assert len(list(run_all(job(run={"track": "kept_by_test:fail"})))) == 3
    assert ["no such project" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("name", ["no_such_module:keep", "kept_by_test:nothing", "kept_by_test:json"])
def test_a_function_that_is_not_there_is_refused_before_any_work(job: Job, name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.track"):
        list(run_all(job(run={"track": name})))
    assert not Path("scored").exists()


def test_the_recipes_compile_and_read_what_is_there(job: Job) -> None:
    recipes = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(recipes) == 2
    list(run_all(job(run={"track": "kept_by_test:keep"})))
    known = told().keys()
    for recipe in recipes:
        compile(recipe, str(PAGE), "exec")
        assert {*re.findall(r'told\["(\w+)"\]', recipe)} <= known
