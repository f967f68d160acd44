"""`python -m pipeline.on_ray.probe ADDRESS`: joins a cluster, or greets a dashboard, and prints what came of it."""

import importlib.metadata
import json
import sys

import ray

from pipeline.config import Run
from pipeline.errors import AlignpotError
from pipeline.on_ray.jobs import connect, submitted_jobs
from pipeline.on_ray.session import ray_session


def probe(address: str) -> tuple[str, str]:
    """State and words of a finding about Ray at `address`."""
    ours = importlib.metadata.version("ray")
    try:
        if address.startswith(("http://", "https://")):
            client = connect(address)
            theirs = getattr(client, "_server_ray_version", ours)
            if theirs != ours:
                return "bad", f"{address} runs Ray {theirs}, this machine {ours}. Install the version of the cluster."
            return "ok", f"{address}: Ray {theirs}, {len(submitted_jobs(client))} jobs"
        with ray_session(Run(address=address), []):
            num_nodes, total = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
            units = ", ".join(f"{total.get(unit, 0):g} {unit}s" for unit in ("CPU", "GPU"))
            return "ok", f"{address}: Ray {ours}, {num_nodes} nodes, {units}"
    except AlignpotError as error:
        return "bad", str(error)


if __name__ == "__main__":
    state, says = probe(sys.argv[1])
    print(json.dumps({"state": state, "says": says}))  # noqa: T201 - it answers the process that started it
