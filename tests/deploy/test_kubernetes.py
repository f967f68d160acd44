"""KubeRay, Job and Argo: the files fit their schemas, run without root and have no token in them."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from hera.workflows.models import Workflow

from pipeline.config import load_config
from tests.deploy.files import ROOT, constraints, read
from tests.deploy.kuberay_schema import RAYCLUSTER, RAYJOB

KUBERNETES = "1.30"


def merged(base: Any, patch: Any) -> Any:
    """A JSON merge patch."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    return {**base, **{key: merged(base.get(key), value) for key, value in patch.items()}}


def queued() -> dict[str, Any]:
    return merged(read("kuberay/rayjob.yaml"), read("kuberay/kueue.yaml"))


def clusters() -> dict[str, dict[str, Any]]:
    return {
        "job": read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"],
        "stays": read("kuberay/raycluster.yaml")["spec"],
    }


def pods() -> Iterator[dict[str, Any]]:
    for cluster in clusters().values():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]
    yield read("kubernetes/job.yaml")["spec"]["template"]["spec"]


def without(value: Any, known: Any, path: str = "") -> Iterator[str]:
    """Keys of a value that did not come back from a typed model, which drops what it does not know."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in known:
                yield f"{path}/{key}"
            else:
                yield from without(each, known[key], f"{path}/{key}")
    elif isinstance(value, list):
        for each, there in zip(value, known, strict=True):
            yield from without(each, there, path)


def lost_by_argo(workflow: dict[str, Any]) -> list[str]:
    return [*without(workflow, json.loads(Workflow.model_validate(workflow).model_dump_json(by_alias=True)))]


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (read("kuberay/rayjob.yaml"), RAYJOB),
        (queued(), RAYJOB),
        (read("kuberay/raycluster.yaml"), RAYCLUSTER),
    ],
    ids=["rayjob", "queued", "raycluster"],
)
def test_kuberay_takes_it(value: dict[str, Any], schema: dict[str, Any]):
    jsonschema.validate(value, schema)


def test_a_misspelt_field_is_found():
    job, pod, workflow = read("kuberay/rayjob.yaml"), read("kubernetes/job.yaml"), read("argo/workflow.yaml")
    job["spec"]["rayClusterSpec"]["authOption"] = job["spec"]["rayClusterSpec"].pop("authOptions")
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(job, RAYJOB)
    pod["spec"]["template"]["spec"]["containers"][0]["resorces"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resorces"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    workflow["spec"]["templates"][1]["retryStrategi"] = {}
    assert lost_by_argo(workflow) == ["/spec/templates/retryStrategi"]


def test_kubernetes_takes_the_job_and_every_pod():
    kubernetes_validate.validate(read("kubernetes/job.yaml"), KUBERNETES, strict=True)
    for spec in pods():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_argo_takes_the_workflow():
    assert lost_by_argo(read("argo/workflow.yaml")) == []


def test_pods_are_no_root_and_hold_no_token():
    for pod in pods():
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["serviceAccountName"] == "alignpot"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all("value" not in e or "TOKEN" not in e["name"] for e in container["env"])


def test_clusters_are_guarded_and_have_a_gpu_for_every_replica():
    models = load_config(ROOT / "jobs/configs/llama3_8b_cluster.yaml").torch_models().values()
    gpus = sum(model.replicas * float(model.num_gpus) for model in models)
    for cluster in clusters().values():
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["rayVersion"] == constraints()["ray"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert cluster["workerGroupSpecs"][0]["maxReplicas"] >= gpus


def test_rayjob_cleans_up_and_leaves_trying_again_to_us():
    spec = read("kuberay/rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] == 0  # KubeRay would try again after a config error, too


def test_kueue_gets_a_cluster_of_fixed_size():
    assert queued()["spec"]["suspend"]
    assert queued()["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert "kueue.x-k8s.io/queue-name" in queued()["metadata"]["labels"]


def test_jobs_are_tried_again_on_75_and_on_a_lost_pod_only():
    rules = read("kubernetes/job.yaml")["spec"]["podFailurePolicy"]["rules"]
    final, lost = rules
    assert (final["action"], final["onExitCodes"]["values"]) == ("FailJob", [1, 2, 3])
    assert (lost["action"], lost["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    for template in read("argo/workflow.yaml")["spec"]["templates"][1:]:
        assert template["retryStrategy"]["expression"] == "lastRetry.exitCode == '75' || lastRetry.status == 'Error'"
