"""Everything in deploy/ and jobs/configs/ names things that exist, fits its schema and carries no secret."""

import json
import re
import shlex
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.config import load_config
from pipeline.sources.formats import check_format_name

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
SCORE_CONFIGS = [path for path in CONFIGS if not path.stem.endswith("self_play")]
IMAGE_ROOT = "/home/ray/alignpot/"
INSTRUCTIONS = {"ARG", "FROM", "RUN", "CMD", "ENV", "COPY", "USER", "WORKDIR", "LABEL"}
# Key material as such, and a literal assigned to a name that calls for one.
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{30,}|://[^/\s:@]+:[^/\s@]+@"
    r"|(?i:secret_access_key|password|hf_token|auth_token)\s*[:=]\s*[\"']?[A-Za-z0-9+/]{8,}"
)

# Our own reading of the KubeRay API reference for ray.io/v1 (v1.5 to v1.7): the fields that a RayJob of ours may use.
_INT = {"type": "integer", "minimum": 0}
_TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {"spec": {"type": "object", "required": ["containers"]}},
}
_GROUP = {
    "resources": {"type": "object"},
    "labels": {"type": "object"},
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": _TEMPLATE,
}
_HEAD = {
    "type": "object",
    "additionalProperties": False,
    "required": ["template"],
    "properties": {
        **_GROUP,
        "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        "headService": {"type": "object"},
        "enableIngress": {"type": "boolean"},
    },
}
_WORKERS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groupName", "minReplicas", "maxReplicas", "template"],
    "properties": {
        **_GROUP,
        "groupName": {"type": "string"},
        "replicas": _INT,
        "minReplicas": _INT,
        "maxReplicas": _INT,
        "numOfHosts": _INT,
        "idleTimeoutSeconds": _INT,
        "suspend": {"type": "boolean"},
        "scaleStrategy": {"type": "object"},
    },
}
_CLUSTER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["headGroupSpec"],
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"mode": {"enum": ["disabled", "token"]}, "secretName": {"type": "string"}},
        },
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {"type": "object"},
        "gcsFaultToleranceOptions": {"type": "object"},
        "headServiceAnnotations": {"type": "object"},
        "headGroupSpec": _HEAD,
        "workerGroupSpecs": {"type": "array", "items": _WORKERS},
        "suspend": {"type": "boolean"},
    },
}
RAYJOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "runtimeEnvYAML": {"type": "string"},
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
                "submitterConfig": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"backoffLimit": _INT},
                },
                "submitterPodTemplate": _TEMPLATE,
                "backoffLimit": _INT,
                "activeDeadlineSeconds": {"type": "integer", "exclusiveMinimum": 0},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": _INT,
                "suspend": {"type": "boolean"},
                "jobId": {"type": "string"},
                "metadata": {"type": "object"},
                "clusterSelector": {"type": "object"},
                "entrypointNumCpus": {"type": "number"},
                "entrypointNumGpus": {"type": "number"},
                "rayClusterSpec": _CLUSTER,
            },
        },
    },
}


def dockerfile() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in logical]


def values_of(name: str) -> list[str]:
    return [value for instruction, value in dockerfile() if instruction == name]


def rayjob() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "rayjob.yaml").read_text(encoding="utf-8"))


def cluster() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "cluster-aws.yaml").read_text(encoding="utf-8"))


def project_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def constraints() -> dict[str, str]:
    lines = (DEPLOY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("path", SCORE_CONFIGS, ids=lambda path: path.stem)
def test_job_config_parses_and_names_a_known_format(path: Path) -> None:
    config = load_config(path)
    assert config.source is not None
    check_format_name(config.source.format)
    assert config.select is not None
    assert config.output is not None


def test_job_configs_are_there() -> None:
    assert {path.stem for path in CONFIGS} >= {"hh_dpo", "ultrafeedback_simpo", "llama3_8b_cluster"}


@pytest.mark.parametrize("path", [*CONFIGS, *sorted(DEPLOY.iterdir())], ids=lambda path: path.name)
def test_deployed_files_hold_no_secret(path: Path) -> None:
    assert not SECRETS.search(path.read_text(encoding="utf-8"))


def test_secret_pattern_finds_one_planted() -> None:
    for planted in (
        "aws_secret_access_key: wJalrXUtnFEMI",
        "AKIA" + "A" * 16,
        "s3://user:pass@bucket",
        "HF_TOKEN=abcdefgh1",
    ):
        assert SECRETS.search(planted), planted


def test_dockerfile_has_known_instructions_and_starts_from_the_pinned_ray() -> None:
    assert {name for name, _ in dockerfile()} <= INSTRUCTIONS
    base, extras = values_of("ARG")
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(project_table()["optional-dependencies"])
    assert base == f"RAY_IMAGE=rayproject/ray:{constraints()['ray']}-py311-gpu"
    assert values_of("FROM") == ["${RAY_IMAGE}"]


def test_dockerfile_never_becomes_root() -> None:
    assert values_of("USER") == ["ray"]
    assert dockerfile()[2] == ("USER", "ray")
    assert not any("sudo" in command for command in values_of("RUN"))


def test_dockerfile_copies_and_runs_files_that_exist() -> None:
    for copied in values_of("COPY"):
        *sources, _target = [part for part in copied.split() if not part.startswith("--")]
        assert [s for s in sources if not (ROOT / s).exists()] == []
    python, script, _ = json.loads(values_of("CMD")[-1])
    assert python == "python"
    assert (ROOT / script).is_file()
    assert values_of("WORKDIR") == [IMAGE_ROOT.rstrip("/")]


def test_constraints_hold_what_is_installed_and_meet_the_project() -> None:
    pinned = constraints()
    project = project_table()
    extras = project["optional-dependencies"]
    wanted = [Requirement(r) for r in project["dependencies"] + extras["demo"] + extras["trainers"] + extras["dev"]]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name != project["name"]:
            assert requirement.specifier.contains(pinned[name]), requirement


def test_constraints_cover_what_the_pinned_packages_need() -> None:
    pinned = constraints()
    for name in ("ray", "torch", "transformers", "datasets", "s3fs", "trl", "typer"):
        try:
            needs = [Requirement(r) for r in distribution(name).requires or []]
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        direct = {canonicalize_name(r.name) for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})}
        # A CUDA build of torch pins its own CUDA packages.
        assert {n for n in direct - set(pinned) if not n.startswith(("nvidia-", "cuda-", "triton"))} == set(), name


def test_rayjob_fits_the_api() -> None:
    jsonschema.validate(rayjob(), RAYJOB)


def test_rayjob_schema_refuses_a_misspelt_field() -> None:
    job = rayjob()
    job["spec"]["rayClusterSpec"]["authOption"] = job["spec"]["rayClusterSpec"].pop("authOptions")
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(job, RAYJOB)


def test_rayjob_runs_a_job_and_a_config_of_ours() -> None:
    python, script, config, *rest = shlex.split(rayjob()["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / script.removeprefix(IMAGE_ROOT)).is_file()
    assert rest[::2] == ["--set"] * (len(rest) // 2)
    load_config(ROOT / config.removeprefix(IMAGE_ROOT), rest[1::2])


def test_rayjob_is_guarded_and_cleans_up() -> None:
    spec = rayjob()["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] == 0  # KubeRay would try again after a config error, too
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["rayVersion"] == constraints()["ray"]
    head, (workers,) = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    for group in (head, workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["serviceAccountName"] == "alignpot"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all("value" not in e or "TOKEN" not in e["name"] for e in container["env"])


def test_clusters_have_a_gpu_for_every_replica_of_their_config() -> None:
    models = load_config(ROOT / "jobs/configs/llama3_8b_cluster.yaml").torch_models().values()
    gpus = sum(model.replicas * float(model.num_gpus) for model in models)
    assert rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] >= gpus
    node = cluster()["available_node_types"]["gpu"]
    assert node["max_workers"] * node["resources"]["GPU"] >= gpus


def test_aws_cluster_fits_the_schema_of_the_installed_ray() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(cluster(), schema)


def test_aws_cluster_installs_nothing_on_its_nodes() -> None:
    filled_in = prepare_config(cluster())
    validate_config(filled_in)
    assert [filled_in[key] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")] == [
        [],
        [],
        [],
    ]


def test_aws_cluster_is_closed_to_the_outside() -> None:
    spec = cluster()
    assert spec["head_node_type"] in spec["available_node_types"]
    head, *others = [c for c in spec["head_start_ray_commands"] + spec["worker_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in command for command in [head, *others])
    assert "/home/ray/.ray/auth_token" in spec["file_mounts"]
    assert spec["max_workers"] >= spec["available_node_types"]["gpu"]["max_workers"]
