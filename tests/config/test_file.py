"""The file and what --set changes in it."""

from pathlib import Path

import pytest

from pipeline.config_file import load_config
from pipeline.errors import ConfigError


def test_override_wins_over_the_file(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("source: {path: pairs.jsonl}\npolicy: {model: m}\nreward: {}\nscored: s\n")
    config = load_config(path, ["objective.beta=2.5", "run.shard_rows=7", "source.passthrough=[a, b]"])
    assert (config.objective.beta, config.run.shard_rows) == (2.5, 7)
    assert config.source is not None
    assert config.source.passthrough == ("a", "b")


@pytest.mark.parametrize("override", ["objective.beta", "=1", "objective..beta=1", "scored.x=1", "objective.beta=[1"])
def test_malformed_override_is_refused(tmp_path: Path, override: str):
    path = tmp_path / "config.yaml"
    path.write_text("scored: s\n")
    with pytest.raises(ConfigError, match="--set"):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- canary\n", "holds a list; wanted a mapping of sections."),
        ("", "is empty"),
        ("a: 1\nb: canary: c\n", "is not YAML at line 2, column 10."),
        ("a: !canary x", "is not YAML at line 1, column 4."),
        ("a: 2024-13-45", "is not YAML (ValueError)"),
        ("a: canary\x00", "is not YAML (ReaderError)"),
    ],
)
def test_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str, said: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert said in str(error.value)
    assert "canary" not in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_named_once(tmp_path: Path):
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"config {path} cannot be read: No such file or directory. Give the path of a YAML file."
