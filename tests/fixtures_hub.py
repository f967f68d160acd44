"""A hub that serves on loopback, with a token in the environment, for this process and those that it starts."""

from collections.abc import Iterator

import pytest

from tests.hub_server import TOKEN, Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    for name, value in {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    # Read when huggingface_hub is imported. Xet, the hub's store of large files, is not part of the server.
    for name, on in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setenv(name, str(int(on)))
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", on)
    yield server
    server.shutdown()
    server.server_close()
