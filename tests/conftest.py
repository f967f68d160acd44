"""Fixtures and settings that more than one folder of tests uses."""

import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.fixtures_storage", "tests.fixtures_models", "tests.fixtures_data"]

# Property tests here are cheap, but the first example of a process pays for imports: no deadline for one example.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Ray's workers would wait for everything else on the machine: here for the tests of the other process, for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: the short ones after them keep every process busy to the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
