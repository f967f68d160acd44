"""Places to write to: a local folder and a prefix on S3, fresh for every test."""

from pathlib import Path

import fsspec
import pytest

from pipeline import config
from pipeline.storage.filesystem import open_filesystem

Place = tuple[fsspec.AbstractFileSystem, str]


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    return open_filesystem(str(tmp_path / "out"), config.Storage())


@pytest.fixture
def s3_place(s3) -> Place:
    return open_filesystem(s3.url("storage"), s3.storage)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(f"{request.param}_place")
