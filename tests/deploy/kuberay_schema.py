"""The fields of KubeRay that our files use, as JSON schemas. Unknown fields are refused."""

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

RAYCLUSTER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": _CLUSTER,
    },
}
