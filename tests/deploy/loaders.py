"""Loads files of deploy/ with the programs that they are for; run by `make check-deploy` in environments of theirs."""

import os
import sys
import tempfile
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"


def load_with_skypilot() -> str:
    """SkyPilot reads the task."""
    import sky
    import yaml

    given = yaml.safe_load((DEPLOY / "skypilot" / "task.yaml").read_text())
    return str(sky.Task.from_yaml_config(given, secrets_overrides=[("RAY_AUTH_TOKEN", "x")]))


def load_with_airflow() -> str:
    """Airflow imports the folder; its two tasks are there."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(DEPLOY / "airflow"))
    if bag.import_errors:
        sys.exit(str(bag.import_errors))
    return str([task.task_id for task in bag.dags["alignpot"].tasks])


if __name__ == "__main__":
    # Both programs write into the home folder when they are imported.
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HOME": home, "AIRFLOW_HOME": home}
        print({"skypilot": load_with_skypilot, "airflow": load_with_airflow}[sys.argv[1]]())
