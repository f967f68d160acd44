"""Fixtures and settings that more than one folder of tests uses."""

import os

from hypothesis import settings

pytest_plugins = ["tests.fixtures_storage", "tests.fixtures_models", "tests.fixtures_data"]

# Property tests here are cheap, but the first example of a process pays for imports: no deadline for one example.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Ray's workers would wait for everything else on the machine: here for the tests of the other process, for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")
