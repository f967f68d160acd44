"""Places to write to: a local folder and a prefix on S3, fresh for every test."""

from pathlib import Path

import pytest

from pipeline import config
from pipeline.data.place import Place


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    return Place.open(str(tmp_path / "out"), config.Storage())


@pytest.fixture
def s3_place(s3) -> Place:
    return Place.open(s3.url("storage"), s3.storage)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(f"{request.param}_place")
