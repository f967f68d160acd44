"""Digests of a model's files: read once while they stay as they are, and again whenever they do not."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from pipeline.config import TorchModel
from pipeline.models.fingerprints import model_fingerprint

LONG_AGO = 1_000_000_000


@pytest.fixture
def model(tiny_model_dir, tmp_path):
    """A model whose files have lain there for years."""
    folder = shutil.copytree(tiny_model_dir("llama"), tmp_path / "model")
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read, one for each time."""
    names = []
    digest = hashlib.file_digest

    def reading(file, algorithm):
        names.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", reading)
    return names


def found(folder):
    return model_fingerprint(TorchModel(model=str(folder), dtype="float32"))


def overwrite(path):
    """Change the last byte, and nothing of size, place and time of the last change."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, (LONG_AGO, LONG_AGO))


def test_files_are_read_once_while_they_stay_as_they_are(model, read):
    before = found(model)
    num_read = len(read)
    assert num_read
    assert found(model) == before
    assert len(read) == num_read


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_gives_a_new_digest(model, name):
    before = found(model)
    overwrite(model / name)
    after = found(model)
    assert sum(before[part] != after[part] for part in before) == 1


def test_a_file_in_the_place_of_another_gives_a_new_digest(model, tmp_path):
    before = found(model)
    other = tmp_path / "other"
    shutil.copy2(model / "model.safetensors", other)
    overwrite(other)
    other.replace(model / "model.safetensors")
    assert found(model)["weights"] != before["weights"]


def test_files_that_have_just_been_written_are_read_again(model, read):
    os.utime(model / "model.safetensors")
    found(model)
    read.clear()
    found(model)
    assert read == ["model.safetensors"]
