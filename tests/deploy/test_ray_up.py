"""The clusters of `ray up`: they fit the schema of the installed Ray and are closed to the outside."""

import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.config import load_config
from tests.deploy.files import ROOT, read
from tests.deploy.test_batch import faults

clouds = pytest.mark.parametrize("cloud", ["aws", "gcp"])


@clouds
def test_cluster_fits_the_schema_of_the_installed_ray(cloud: str):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(read(f"ray-up/{cloud}.yaml"), schema)


@clouds
def test_cluster_installs_nothing_on_its_nodes(cloud: str):
    filled_in = prepare_config(read(f"ray-up/{cloud}.yaml"))
    validate_config(filled_in)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert filled_in[key] == []


@clouds
def test_cluster_is_closed_to_the_outside(cloud: str):
    spec = read(f"ray-up/{cloud}.yaml")
    assert spec["head_node_type"] in spec["available_node_types"]
    head, *others = [c for c in spec["head_start_ray_commands"] + spec["worker_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in command for command in [head, *others])
    assert "/home/ray/.ray/auth_token" in spec["file_mounts"]


@clouds
def test_cluster_has_a_gpu_for_every_replica(cloud: str):
    models = load_config(ROOT / "jobs/configs/llama3_8b_cluster.yaml").torch_models().values()
    spec = read(f"ray-up/{cloud}.yaml")
    node = spec["available_node_types"]["gpu"]
    assert spec["max_workers"] >= node["max_workers"]
    assert node["max_workers"] * node["resources"]["GPU"] >= sum(m.replicas * float(m.num_gpus) for m in models)


def test_ec2_takes_the_nodes():
    for node in read("ray-up/aws.yaml")["available_node_types"].values():
        assert faults({"MinCount": 1, "MaxCount": 1, **node["node_config"]}, "ec2", "RunInstances") == []
