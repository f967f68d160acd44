"""What a config accepts, and what it says about what it does not."""

from pathlib import Path

import pytest

from pipeline.config import load_config, parse_config
from pipeline.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "jobs" / "configs").glob("*.yaml"))

GOOD = {
    "source": {"path": "pairs.jsonl"},
    "policy": {"model": "m"},
    "reward": {"backend": "columns"},
    "scored": "scored",
    "select": {"fraction": 0.4},
    "output": {"path": "subset"},
}


def changed(**sections):
    return {**GOOD, **sections}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_vetted_config_parses(path: Path):
    assert load_config(path).source is not None


def test_vetted_configs_are_there():
    assert CONFIGS


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (changed(metric={"wieght": 1}), ["metric.wieght", "did you mean weight?"]),
        (changed(polcy={}), ["polcy", "did you mean policy?"]),
        (changed(policy={"model": "m", "dtyp": "x"}), ["policy.dtyp", "did you mean dtype?"]),
        (changed(reward={"backend": "classifier"}), ["reward.model", "required"]),
        (changed(policy={"backend": "vlm", "model": "m"}), ["policy", "torch", "columns"]),
        (changed(select={"fraction": 0}), ["select.fraction", "got 0"]),
        (changed(select={"fraction": 1.5}), ["select.fraction", "got 1.5"]),
        (changed(select={"fraction": 0.4, "k": 10}), ["select", "exactly one of fraction and k"]),
        (changed(metric={"weight": -1}), ["metric.weight", "got -1"]),
        (changed(metric={"weight": float("nan")}), ["metric.weight"]),
        (changed(objective={"name": "dpo"}), ["objective dpo", "add a reference section"]),
        (changed(policy=None), ["metric potential", "add a policy section"]),
        (changed(reward=None), ["metric potential", "add a reward section"]),
        (changed(scored="subset/"), ["must differ"]),
        (changed(source={"path": "https://host/pairs.jsonl"}), ["source.path", "object-store URL"]),
        (changed(tokens={"preset": "paper", "max_length": 1000}), ["max_prompt_length", "below max_length"]),
        (changed(tokens={"chat_template": "no-such-file.jinja"}), ["tokens.chat_template", "cannot be read"]),
        ({"source": {"path": "x"}}, ["scored", "required"]),
    ],
)
def test_bad_config_names_key_and_remedy(config: dict, parts: list[str]):
    with pytest.raises(ConfigError) as error:
        parse_config(config)
    for part in parts:
        assert part in str(error.value)


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="must not carry credentials") as error:
        parse_config(changed(scored="s3://user:canary-secret@bucket/x"))
    assert "canary" not in str(error.value)


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


@pytest.mark.parametrize("text", ["- a\n", "a: [", ""])
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="config"):
        load_config(path)


def test_backend_may_be_left_out():
    config = parse_config(changed(reward={}))
    assert (config.policy.backend, config.reward.backend) == ("torch", "columns")


def test_chat_template_is_read_where_the_config_is(tmp_path: Path):
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    assert parse_config(changed(tokens={"chat_template": str(template)})).tokens.chat_template == "{{ messages }}"
