"""The run that started this one, and its attempt, as schedulers name them in variables."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.observers.observed import observed
from tests.observers.conftest import Event

PARENT = "0191f1c4-7c5b-7000-8000-000000000001"
ROOT = "0191f1c4-7c5b-7000-8000-000000000002"

Events = Callable[[], list[Event]]


def run() -> None:
    with observed("score", "/scored", {}):
        pass


AIRFLOW = {
    "AIRFLOW_CTX_DAG_ID": "dag", "AIRFLOW_CTX_TASK_ID": "task", "AIRFLOW_CTX_TRY_NUMBER": "2",
    "AIRFLOW_CTX_EXECUTION_DATE": "2026-01-02T03:04:05+00:00", "AIRFLOW__OPENLINEAGE__NAMESPACE": "airflow-prod",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "parent", "root"),
    [
        ({"OPENLINEAGE_PARENT_ID": f"air/dag.task/{PARENT}"}, ("air", "dag.task", PARENT), PARENT),
        ({"OPENLINEAGE_PARENT_ID": f"air/a/b/{PARENT}"}, ("air", "a/b", PARENT), PARENT),
        (
            {"OPENLINEAGE_PARENT_ID": f"air/dag.task/{PARENT}", "OPENLINEAGE_ROOT_PARENT_ID": f"air/dag/{ROOT}"},
            ("air", "dag.task", PARENT),
            ROOT,
        ),
        (
            {"OPENLINEAGE_PARENT_JOB_NAMESPACE": "air", "OPENLINEAGE_PARENT_JOB_NAME": "job",
             "OPENLINEAGE_PARENT_RUN_ID": PARENT},
            ("air", "job", PARENT),
            PARENT,
        ),
        (AIRFLOW, ("airflow-prod", "dag.task", None), None),
        ({"OPENLINEAGE_PARENT_ID": "air/dag.task/7"}, None, None),
        ({**AIRFLOW, "AIRFLOW_CTX_EXECUTION_DATE": "yesterday"}, None, None),
    ],
)  # fmt: skip
def test_the_parent_run_is_that_of_the_scheduler(
    events: Events, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], parent: Any, root: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run()
    for event in events():
        facet = event["run"]["facets"].get("parent")
        if parent is None:
            assert facet is None
            continue
        assert (facet["job"]["namespace"], facet["job"]["name"]) == parent[:2]
        assert facet["run"]["runId"] == (parent[2] or facet["run"]["runId"])
        assert facet["root"]["run"]["runId"] == (root or facet["run"]["runId"])


def test_another_attempt_of_a_scheduler_is_another_run(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for number in ("1", "2"):
        monkeypatch.setenv("AIRFLOW_CTX_TRY_NUMBER", number)
        run()
        ids.append(events()[0]["run"]["runId"])
    assert ids[0] != ids[1]
