"""A hub that serves on loopback, with a token in the environment."""

import os
from collections.abc import Iterator

import pytest

from tests.hub_server import TOKEN, Hub

# The store of large files that hub clients prefer is not part of the server; read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
