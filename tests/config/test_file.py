"""The file and what --set changes in it."""

import os
import threading
from pathlib import Path

import pytest

from pipeline.config import load, load_config
from pipeline.errors import ConfigError

USABLE = "source: {path: pairs.jsonl}\npolicy: {model: m}\nreward: {}\nscored: s\n"
BOMB = ", ".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))])
MERGES = ", ".join(["a0: &a0 {k: v}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9))])
TOO_MUCH = [
    ("[" * 300, "nested deeper than 100"),
    ("[" * 101 + "]" * 101, "nested deeper than 100"),
    (f"[&a {'[' * 60}{']' * 60}, {'[' * 60}*a{']' * 60}]", "nested deeper than 100"),
    (f"{{{BOMB}}}", "more than 100,000 values"),
    (f"{{{MERGES}}}", "more than 100,000 values"),
    ("&a [*a]", "has no end"),
    ("&a {b: {<<: *a}}", "has no end"),
    (":".join(["1"] * 3000), "more than 1,000 digits"),
]


def test_override_wins_over_the_file(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(USABLE)
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
        ("a: !!int ''", "is not YAML (IndexError)"),
        ("a: !!bool canary", "is not YAML (KeyError)"),
        *((f"a: {value}", said) for value, said in TOO_MUCH),
        *((f"policy: {{backend: vllm, model: m, engine_args: {{x: {value}}}}}", said) for value, said in TOO_MUCH),
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


@pytest.mark.parametrize(("value", "said"), TOO_MUCH)
def test_value_of_an_override_has_the_bounds_of_a_file(tmp_path: Path, value: str, said: str):
    path = tmp_path / "config.yaml"
    path.write_text(USABLE)
    with pytest.raises(ConfigError) as error:
        load_config(path, [f"source.passthrough={value}"])
    assert str(error.value).startswith("--set source.passthrough: the value ")
    assert said in str(error.value)


def test_key_of_an_override_is_not_nested_without_end(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(USABLE)
    with pytest.raises(ConfigError, match=r"wanted key\.path=value"):
        load_config(path, [f"{'a.' * 5000}a=1"])


def test_aliases_that_stay_small_are_taken(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("source: {path: p}\npolicy: &m {model: m}\nreference: {<<: *m}\nreward: {}\nscored: s\n")
    config = load_config(path)
    assert config.reference == config.policy


def test_config_may_come_through_a_pipe(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(USABLE,))
    writer.start()
    assert load_config(pipe).scored == "s"
    writer.join()


def test_file_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="config /dev/zero cannot be read: it is longer than 10,000,000 bytes"):
        load_config("/dev/zero")
    monkeypatch.setattr(load, "_PATIENCE_S", 0.05)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="its text did not end within"):
        load_config(tmp_path / "pipe")


@pytest.mark.parametrize("url", ["https://user:canary@host/config.yaml", "s3://canary@bucket/c.yaml?token=canary"])
def test_credentials_of_the_command_line_are_not_repeated(tmp_path: Path, url: str):
    path = tmp_path / "config.yaml"
    path.write_text(USABLE)
    every = [(url, []), (Path(url), []), (path, [url]), (path, [f"{url}=1"]), (path, [f"scored={url}"])]
    for given, overrides in every:
        with pytest.raises(ConfigError) as error:
            load_config(given, overrides)
        assert "canary" not in str(error.value)
