"""Where the passes of a selection run."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config import Config, Select
from pipeline.selection.passes import Passes, Threads


@contextmanager
def passes_for(config: Config, select: Select | None) -> Iterator[Passes]:
    """Threads of this machine, or tasks of a Ray cluster.

    `select.engine: auto` takes Ray where there is a cluster to join and `run.engine` is ray: a Ray of our own on this
    machine would only add to what threads do.

    Raises:
        TemporaryError, ConfigError: the cluster cannot be joined.
    """
    engine = "auto" if select is None else select.engine
    if engine == "plain" or (engine == "auto" and config.run.engine == "plain"):
        yield Threads()
        return
    from pipeline.on_ray.session import cluster_address, ray_session

    if engine == "auto" and cluster_address(config.run) is None:
        yield Threads()
        return
    from pipeline.on_ray.tasks import RayTasks

    with ray_session(config.run, []):
        yield RayTasks()
