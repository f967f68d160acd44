"""The run that started this one, from the variables of schedulers, as other integrations of OpenLineage read them."""

import datetime
import os
import uuid
from collections.abc import Mapping
from typing import Final, NamedTuple

_ATTEMPTS: Final = ("AIRFLOW_CTX_TRY_NUMBER", "AWS_BATCH_JOB_ATTEMPT")
_DATES: Final = ("AIRFLOW_CTX_LOGICAL_DATE", "AIRFLOW_CTX_EXECUTION_DATE")


class Parent(NamedTuple):
    """A run of a job."""

    namespace: str
    job: str
    run_id: str


def attempt() -> str:
    """Which attempt of a scheduler this is."""
    return next((os.environ[name] for name in _ATTEMPTS if os.environ.get(name)), "1")


def parent() -> Parent | None:
    """The run that started this one; None if no variable names it, or none names it well.

    OPENLINEAGE_PARENT_ID is NAMESPACE/JOB/RUN_ID. Without it the task of Airflow is taken whose variables are there.
    """
    return _named("OPENLINEAGE_PARENT") or _airflow_task(os.environ)


def root() -> Parent | None:
    """The run at the root of that one."""
    return _named("OPENLINEAGE_ROOT_PARENT")


def _named(prefix: str) -> Parent | None:
    namespace, _, rest = os.environ.get(f"{prefix}_ID", "").partition("/")
    job, _, run_id = rest.rpartition("/")
    if not (namespace and job):
        namespace, job, run_id = (
            os.environ.get(f"{prefix}_{name}", "") for name in ("JOB_NAMESPACE", "JOB_NAME", "RUN_ID")
        )
    try:
        uuid.UUID(run_id)
    except ValueError:
        return None
    return Parent(namespace, job, run_id) if namespace and job else None


def _airflow_task(variables: Mapping[str, str]) -> Parent | None:
    """The task, with the run id that Airflow's provider of OpenLineage makes of the same values.

    That of a mapped task holds its index too, which no variable names: pass OPENLINEAGE_PARENT_ID there.
    """
    from openlineage.client.uuid import generate_static_uuid

    dag, task, number = (variables.get(f"AIRFLOW_CTX_{name}") for name in ("DAG_ID", "TASK_ID", "TRY_NUMBER"))
    date = next((variables[name] for name in _DATES if variables.get(name)), None)
    if not (dag and task and number and date):
        return None
    namespace = variables.get("AIRFLOW__OPENLINEAGE__NAMESPACE") or variables.get("OPENLINEAGE_NAMESPACE") or "default"
    try:
        instant = datetime.datetime.fromisoformat(date)
    except ValueError:
        return None
    run_id = generate_static_uuid(instant, f"{namespace}.{dag}.{task}.{number}.-1".encode())
    return Parent(namespace, f"{dag}.{task}", str(run_id))
