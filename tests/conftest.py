"""Fixtures and settings that more than one folder of tests uses."""

import gc
import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.fixtures_storage", "tests.fixtures_hub", "tests.fixtures_models", "tests.fixtures_data"]

# Property tests here are cheap, but the first example of a process pays for imports: no deadline for one example.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Ray's workers would wait for everything else on the machine: here for the tests of the other process, for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_finish() -> None:
    """Garbage collection passes over what was imported until now: TRL's trainers ask for it after every training."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Else extension modules that look for leaks at the end would report all of it."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Files go to processes from both ends of the list, where `--dist loadfile` would go from one.

    The list begins with the files of many short tests and ends with those of few long ones: taken from one end, the
    long ones would come last, and one of them would end alone.
    """
    from xdist.scheduler import LoadFileScheduling

    class FromBothEnds(LoadFileScheduling):
        def _assign_work_unit(self, node) -> None:
            if node is not self.nodes[0]:
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    return FromBothEnds(config, log) if config.getoption("dist") == "loadfile" else None
