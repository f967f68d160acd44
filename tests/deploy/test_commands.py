"""Every `alignpot ...` in deploy/ parses: the command, its options, its config and the keys that it sets."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from jinja2 import Template

from pipeline.cli import app
from pipeline.config import load_config
from tests.deploy.files import DEPLOY, IMAGE_ROOT, ROOT, called_by_node, commands_in, read, shell_of_pages

BATCH = {"AWS_BATCH_JOB_NODE_INDEX": "2", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.5"}
SKYPILOT = {"SKYPILOT_NODE_RANK": "2", "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "BUCKET": "s3://YOUR-BUCKET"}


def aws_batch() -> str:
    """The shell command of a node."""
    return read("aws-batch/job-definition.json")["nodeProperties"]["nodeRangeProperties"][0]["container"]["command"][2]


def argo_commands() -> Iterator[list[str]]:
    spec = read("argo/workflow.yaml")["spec"]
    values = {parameter["name"]: parameter["value"] for parameter in spec["arguments"]["parameters"]}
    for template in spec["templates"]:
        if "container" in template:
            words = [*template["container"]["command"], *template["container"]["args"]]
            yield [Template(word).render(workflow={"parameters": values}) for word in words]


def airflow_commands() -> Iterator[list[str]]:
    """What the DAG gives to its run_command; names stand for the constants of the file."""
    tree = ast.parse((DEPLOY / "airflow" / "alignpot_dag.py").read_text())
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "run_command":
            words = [word.value if isinstance(word, ast.Constant) else ast.unparse(word) for word in call.args]
            yield ["alignpot", *words]


def all_commands(folder: Path) -> dict[str, list[list[str]]]:
    pod = read("kubernetes/job.yaml")["spec"]["template"]["spec"]["containers"][0]
    [runnable] = read("google-batch/job.json")["taskGroups"][0]["taskSpec"]["runnables"]
    return {
        "kuberay/rayjob.yaml": commands_in(read("kuberay/rayjob.yaml")["spec"]["entrypoint"]),
        "kubernetes/job.yaml": [[*pod["command"], *pod["args"]]],
        "google-batch/job.json": [runnable["container"]["commands"]],
        "aws-batch/job-definition.json": [called_by_node(aws_batch(), folder, **BATCH)["argv"]],
        "skypilot/task.yaml": [called_by_node(read("skypilot/task.yaml")["run"], folder, **SKYPILOT)["argv"]],
        "argo/workflow.yaml": [*argo_commands()],
        "airflow/alignpot_dag.py": [*airflow_commands()],
        **{page: commands_in(shell) for page, shell in shell_of_pages().items()},
    }


def test_every_command_parses(tmp_path: Path):
    known: Any = typer.main.get_command(app)
    found = all_commands(tmp_path)
    assert {name for name, commands in found.items() if not commands and not name.endswith(".md")} == set()
    for name, commands in found.items():
        for program, command, *words in commands:
            assert program == "alignpot", name
            given = known.commands[command].make_context(command, words).params
            config = given.get("config")
            if config is not None and str(config).startswith(IMAGE_ROOT):
                load_config(ROOT / str(config).removeprefix(IMAGE_ROOT), given["overrides"] or [])


def test_an_option_that_is_not_there_is_found():
    known: Any = typer.main.get_command(app)
    with pytest.raises(Exception, match="No such option"):
        known.commands["run"].make_context("run", ["config.yaml", "--sett=a=b"])


@pytest.mark.parametrize(
    ("environment", "rank", "head"), [(BATCH, "2", "10.0.0.5"), ({"AWS_BATCH_JOB_NODE_INDEX": "0"}, "0", "")]
)
def test_nodes_of_aws_batch_know_their_head(environment: dict[str, str], rank: str, head: str, tmp_path: Path):
    called = called_by_node(aws_batch(), tmp_path, **environment)
    assert (called["RANK"], called["HEAD"]) == (rank, head)


def test_nodes_of_skypilot_know_their_head(tmp_path: Path):
    called = called_by_node(read("skypilot/task.yaml")["run"], tmp_path, **SKYPILOT)
    assert (called["RANK"], called["HEAD"]) == ("2", "10.0.0.5")
