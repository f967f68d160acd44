"""The image: it builds from files that exist and from pinned versions, and runs as no root. Docker is not needed."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.files import DEPLOY, IMAGE_ROOT, ROOT, constraints, read

DOCKERFILE = DEPLOY / "image" / "Dockerfile"
ON_NODES = DEPLOY / "image" / "on-nodes"
TOKEN = "0123456789" * 4


def tool(name: str) -> str:
    """A program of the environment that runs the tests."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def dockerfile() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in logical]


def values_of(name: str) -> list[str]:
    return [value for instruction, value in dockerfile() if instruction == name]


def project_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_hadolint_has_no_complaint():
    done = subprocess.run([tool("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_has_no_complaint(tmp_path: Path):
    (tmp_path / "skypilot.sh").write_text(f"#!/bin/bash\n{read('skypilot/task.yaml')['run']}")
    scripts = [ON_NODES, DEPLOY / "slurm" / "alignpot.sbatch", tmp_path / "skypilot.sh"]
    done = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_image_starts_from_the_pinned_ray_for_gpus_and_for_cpus():
    ray_image, target, *_ = values_of("ARG")
    assert ray_image == f"RAY_IMAGE=rayproject/ray:{constraints()['ray']}-py311"
    assert target == "TARGET=cuda"
    assert values_of("FROM")[:3] == ["${RAY_IMAGE}-cpu AS cpu", "${RAY_IMAGE}-gpu AS cuda", "${TARGET} AS alignpot"]
    assert values_of("FROM")[-1] == "alignpot"
    extras = re.findall(r"ALIGNPOT_EXTRAS=(\S+)", "\n".join(values_of("ENV")))
    assert {name for each in extras for name in each.split(",")} <= set(project_table()["optional-dependencies"])


def test_image_never_becomes_root():
    assert values_of("USER") == ["1000"]
    assert not any("sudo" in command for command in values_of("RUN"))


def test_image_is_labelled_as_the_project_is():
    [labels] = values_of("LABEL")
    project = project_table()
    assert f'image.version="{project["version"]}"' in labels
    assert f'image.licenses="{project["license"]}"' in labels


def test_image_copies_and_runs_what_exists():
    for copied in values_of("COPY"):
        if "--from=" not in copied:
            *sources, _target = [part for part in copied.split() if not part.startswith("--")]
            assert [s for s in sources if not (ROOT / s).exists()] == []
    assert json.loads(values_of("CMD")[-1])[0] in project_table()["scripts"]
    assert values_of("WORKDIR") == [IMAGE_ROOT.rstrip("/")]
    assert os.access(ON_NODES, os.X_OK)


def test_constraints_hold_what_is_installed_and_meet_the_project():
    pinned = constraints()
    project = project_table()
    extras = project["optional-dependencies"]
    given = (project["dependencies"], *(extras[name] for name in ("demo", "tables", "trainers", "dev")))
    wanted = [Requirement(r) for requirements in given for r in requirements]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name != project["name"]:
            assert requirement.specifier.contains(pinned[name]), requirement


def test_constraints_cover_what_the_pinned_packages_need():
    pinned = constraints()
    tables = ("deltalake", "pyiceberg", "pylance")
    for name in ("ray", "torch", "transformers", "datasets", "s3fs", "trl", "typer", *tables):
        try:
            needs = [Requirement(r) for r in distribution(name).requires or []]
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        direct = {canonicalize_name(r.name) for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})}
        # A CUDA build of torch pins its own CUDA packages.
        assert {n for n in direct - set(pinned) if not n.startswith(("nvidia-", "cuda-", "triton"))} == set(), name


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


FAILS_ONCE = """#!/bin/sh
if [ "$2" = --head ] && mkdir "$HOME/failed" 2> /dev/null; then exit 1; fi
exec "$REAL_RAY" "$@"
"""
WAIT_FOR_TWO = """
import signal, sys, time, ray
ray.init(logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("two nodes", flush=True)
time.sleep(60)
"""


@pytest.mark.soak
@pytest.mark.ray
def test_nodes_of_a_batch_job_make_one_cluster_and_end_with_the_code_of_the_command(tmp_path: Path):
    """SIGTERM reaches the command, whose exit code the head ends with; the other node ends with 0. The head's Ray fails
    at its first start."""
    folder = Path("/tmp") / f"nodes-{os.getpid()}"  # Ray's sockets want a short path
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").write_text(FAILS_ONCE)
    (tmp_path / "bin" / "ray").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"HEAD": "127.0.0.1", "PORT": free_port(), "PATH": path, "RAY_TMPDIR": str(folder)}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(tmp_path)}
    environment["REAL_RAY"] = str(Path(sys.executable).parent / "ray")
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"  # the other node sees sooner that the head is gone
    folder.mkdir()
    (tmp_path / "wait.py").write_text(WAIT_FOR_TWO)
    command = [str(ON_NODES), sys.executable, str(tmp_path / "wait.py")]
    nodes = [
        subprocess.Popen(
            command, env={**environment, "RANK": rank}, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        for rank in ("0", "1")
    ]
    try:
        head, other = nodes
        assert any("two nodes" in line for line in head.stdout)
        assert (tmp_path / "failed").exists()
        head.terminate()
        assert head.wait(60) == 75
        assert other.wait(90) == 0
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
            node.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.soak
@pytest.mark.ray
def test_a_ray_that_does_not_start_is_temporary(tmp_path: Path):
    """The port of a head is among those that Ray keeps for its workers."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"RANK": "0", "HEAD": "127.0.0.1", "PORT": "16379", "PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run([ON_NODES, "true"], env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 75
    assert done.stderr.count("port number 16379") >= 3
    assert "in 3 tries" in done.stderr
