"""An Airflow DAG that runs alignpot on a Ray cluster, and tries again only what another try can cure.

alignpot lives in a virtual environment of its own on Airflow's workers, since their versions differ: see README.md.
The job on the cluster has an id made from its config. A task that was killed finds it again and follows it.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

ALIGNPOT = "/opt/alignpot/bin/alignpot"
ADDRESS = "http://ray-head:8265"
CONFIG = "/opt/alignpot/configs/config.yaml"
TEMPORARY = 75


def run_command(*arguments: str) -> None:
    """Run `alignpot`; its output goes to the log of the task. Exit code 75 is tried again, any other is final."""
    code = subprocess.run([ALIGNPOT, *arguments], check=False).returncode
    if code == TEMPORARY or code < 0:  # below 0: killed by a signal
        raise AirflowException(f"alignpot ended with {code}: it will be tried again.")
    if code != 0:
        raise AirflowFailException(f"alignpot ended with {code}. The log above says why; another try would not help.")


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["alignpot"])
def alignpot() -> None:
    """Check the config and a sample of the rows, then run the whole job on the cluster."""

    @task(retries=5, retry_delay=timedelta(minutes=2))
    def check() -> None:
        run_command("run", CONFIG, "--dry-run")

    @task(retries=5, retry_delay=timedelta(minutes=2), execution_timeout=timedelta(hours=24))
    def run() -> None:
        run_command("submit", "run", CONFIG, "--address", ADDRESS)

    check() >> run()


alignpot()
