"""Fixtures that more than one folder of tests uses."""

pytest_plugins = ["tests.fixtures_storage", "tests.fixtures_models", "tests.fixtures_data"]
