"""Fixtures and settings that more than one folder of tests uses."""

from hypothesis import settings

pytest_plugins = ["tests.fixtures_storage", "tests.fixtures_models", "tests.fixtures_data"]

# Property tests here are cheap, but the first example of a process pays for imports: no deadline for one example.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
