"""AWS Batch, Google Batch and Slurm: the files fit what the services accept, and only exit code 75 is tried again."""

import copy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.model import Shape
from botocore.validate import ParamValidator
from google.cloud import batch_v1
from google.protobuf import json_format

from tests.deploy.files import DEPLOY, read

SLURM = DEPLOY / "slurm" / "alignpot.sbatch"


def faults(given: Any, service: str, operation: str) -> list[str]:
    """What a service of AWS would refuse: botocore finds keys and types, and we the values of enumerations."""
    shape = botocore.session.get_session().get_service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(given, shape).generate_report()
    return [*filter(None, [report]), *_odd_values(given, shape, operation)]


def _odd_values(given: Any, shape: Shape, path: str) -> Iterator[str]:
    if isinstance(given, dict) and shape.type_name == "structure":
        for key, value in given.items():
            if key in shape.members:
                yield from _odd_values(value, shape.members[key], f"{path}.{key}")
    elif isinstance(given, list) and shape.type_name == "list":
        for value in given:
            yield from _odd_values(value, shape.member, path)
    elif getattr(shape, "enum", None) and given not in shape.enum:
        yield f"{path}: {given!r} is none of {shape.enum}"


def test_aws_takes_the_job_definition():
    definition = read("aws-batch/job-definition.json")
    assert faults(definition, "batch", "RegisterJobDefinition") == []
    broken = copy.deepcopy(definition)
    broken["type"] = "multi-node"
    broken["nodeProperties"]["numNode"] = broken["nodeProperties"].pop("numNodes")
    assert len(faults(broken, "batch", "RegisterJobDefinition")) == 2


def test_aws_tries_again_on_75_and_on_a_lost_host_only():
    rules = read("aws-batch/job-definition.json")["retryStrategy"]["evaluateOnExit"]
    assert rules == [
        {"onExitCode": "75", "action": "RETRY"},
        {"onStatusReason": "Host EC2*", "action": "RETRY"},
        {"onReason": "*", "action": "EXIT"},
    ]


def test_aws_batch_has_a_node_for_every_gpu_and_one_head():
    nodes = read("aws-batch/job-definition.json")["nodeProperties"]
    assert nodes["mainNode"] == 0
    assert [group["targetNodes"] for group in nodes["nodeRangeProperties"]] == ["0:"]
    assert nodes["numNodes"] == 6


def test_google_takes_the_job():
    job = read("google-batch/job.json")
    json_format.ParseDict(job, batch_v1.Job.pb(batch_v1.Job()))
    job["allocationPolicy"]["instances"][0]["policy"]["provisioningModel"] = "CHEAP"
    with pytest.raises(json_format.ParseError, match="provisioningModel"):
        json_format.ParseDict(job, batch_v1.Job.pb(batch_v1.Job()))


def test_google_tries_again_on_75_and_on_a_lost_machine_only():
    [group] = read("google-batch/job.json")["taskGroups"]
    [policy] = group["taskSpec"]["lifecyclePolicies"]
    assert policy["action"] == "RETRY_TASK"  # which fails a task with any other exit code
    ours, *lost = policy["actionCondition"]["exitCodes"]
    assert ours == 75
    assert all(code > 50000 for code in lost)


# srun runs its command once, as the node of rank 3; scontrol says what it was asked for.
STAND_INS = {
    "srun": 'SLURM_PROCID=3 "$@"; exit "$CODE"',
    "scontrol": 'echo "scontrol $*"',
    "on-nodes": 'echo "on-nodes $RANK $PORT $*"',
}


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(0, 0, False), (1, 0, False), (3, 0, False), (75, 0, True), (75, 5, False)]
)
def test_slurm_puts_the_job_back_on_75_only(code: int, restarts: int, again: bool, tmp_path: Path):
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"CODE": str(code), "SLURM_JOB_ID": "1234567", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(
        ["bash", SLURM, "config.yaml", "--set", "select.k=20"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    asked = ["scontrol requeue 1234567"] if again else []
    assert done.stdout.splitlines() == ["on-nodes 3 24567 alignpot run config.yaml --set select.k=20", *asked]
