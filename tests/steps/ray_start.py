"""A cluster of `ray start`: a head that takes submitted jobs, and nodes that can be killed."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = Path(sys.executable).parent / "ray"
READY_TIMEOUT_S = 300.0
_STAGES = "ray::MapWorker"  # in the names of processes that run our stages
_STARTED = "Ray runtime started"
_MOST_TRIES = 3

Process = subprocess.Popen[bytes]


@dataclass
class RayCluster:
    """A head without CPUs, as a head should be, and the nodes that joined it. Its logs are in `folder`."""

    folder: Path
    session: Path
    """Sockets and logs of Ray. They lie deep in the folder of pytest, and a socket's path may have 107 bytes."""
    port: int
    dashboard: int
    processes: list[Process] = field(default_factory=list)
    nodes: list[Process] = field(default_factory=list)
    """Those of the processes that are nodes with CPUs."""

    @property
    def url(self) -> str:
        """Of the dashboard."""
        return f"http://127.0.0.1:{self.dashboard}"

    def start_head(self) -> None:
        """Start it, and wait until the dashboard answers."""
        self._start(
            "--head", f"--port={self.port}", f"--temp-dir={self.session}", "--num-cpus=0", "--disable-usage-stats",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}",
        )  # fmt: skip
        wait_until(self._answers, "no dashboard answers")

    def add_node(self, num_cpus: int) -> None:
        """Have one more node join. Ray gives it 30 seconds, which is not always enough on a busy machine."""
        self.nodes.append(self._start(f"--address=127.0.0.1:{self.port}", f"--num-cpus={num_cpus}"))

    def kill_node(self) -> bool:
        """`kill -9` to every process of the node with most workers of ours; False if there are none."""
        node = max(self.nodes, key=lambda node: len(workers_of(node)))
        if not workers_of(node):
            return False
        self.nodes.remove(node)
        kill_with_children(node)
        return True

    def kill_worker(self) -> bool:
        """`kill -9` to a worker of ours that is built: one that dies too often before ends the run. False if none."""
        workers = [worker for node in self.nodes for worker in workers_of(node)]
        built = [worker for worker in workers if "__init__" not in worker.name()]
        for worker in built[:1]:
            worker.kill()
        return bool(built)

    def end(self) -> None:
        """`kill -9` to all: asked to end, Ray's head takes half a minute."""
        for process in reversed(self.processes):
            kill_with_children(process)

    def _start(self, *options: str) -> Process:
        command = [str(RAY), "start", "--block", f"--dashboard-agent-listen-port={free_port()}", *options]
        for _ in range(_MOST_TRIES):
            log = self.folder / f"{len(self.processes)}.log"
            with log.open("wb") as out:
                process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
            self.processes.append(process)
            wait_until(lambda: process.poll() is not None or _STARTED in log.read_text(), "Ray does not start")  # noqa: B023
            if process.poll() is None:
                return process
        raise AssertionError(log.read_text()[-2000:])

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/api/version", timeout=2)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


@contextlib.contextmanager
def ray_cluster(folder: Path, *, num_nodes: int, num_cpus: int) -> Iterator[RayCluster]:
    """Such a cluster with nodes of so many CPUs each. Its processes are ended by their pids."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as session:
        cluster = RayCluster(folder, Path(session), free_port(), free_port())
        try:
            cluster.start_head()
            for _ in range(num_nodes):
                cluster.add_node(num_cpus)
            yield cluster
        finally:
            cluster.end()


def wait_until(reached: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not reached():
        assert time.monotonic() < deadline, f"{failure} in {READY_TIMEOUT_S:.0f} s"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def workers_of(node: Process) -> list[psutil.Process]:
    """The processes of a node that run our stages."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(node.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith(_STAGES):
                    found.append(child)
    return found


def kill_with_children(process: Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait(timeout=60)
