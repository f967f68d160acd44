"""What a config accepts, and what it says about what it does not."""

from pathlib import Path

import pytest

from pipeline.config import resolved
from pipeline.config_file import load_config, parse_config
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
        (changed(objective={"name": "dpop"}), ["objective dpop", "add a reference section"]),
        (changed(objective={"name": "simpo", "alpha": 0.1}), ["objective: simpo does not use alpha; leave it out"]),
        (changed(objective={"name": "orpo", "beta": 0.1}), ["orpo does not use beta", "orpo takes no parameter"]),
        (changed(objective={"name": "r-dpo", "alpha": -0.1}), ["alpha of r-dpo", "set length_sign: -1 instead"]),
        (changed(objective={"name": "simop"}), ["objective.name", "simpo", "got 'simop'"]),
        (changed(objective={"btea": None}), ["objective.btea", "did you mean beta?"]),
        (changed(policy=None), ["metric potential", "add a policy section"]),
        (changed(reward=None), ["metric potential", "add a reward section"]),
        (changed(scored="subset/"), ["must differ"]),
        (changed(source={"path": "https://host/pairs.jsonl"}), ["source.path", "object-store URL"]),
        (changed(tokens={"preset": "paper", "max_length": 1000}), ["max_prompt_length", "below max_length"]),
        (changed(tokens={"chat_template": "no-such-file.jinja"}), ["tokens.chat_template", "cannot be read"]),
        ({"source": {"path": "x"}}, ["scored", "required"]),
        (changed(source={"path": "d"}, scored="d/scored"), ["scored", "lies inside source.path"]),
        (changed(output={"path": "d/../scored"}), ["must differ"]),
        (changed(output={"path": "subset", "formats": []}), ["output.formats"]),
        (changed(output={"path": "subset", "formats": ["hf", "hf"]}), ["output.formats", "twice"]),
        (changed(policy={"backend": "columns"}, reference={"model": "m"}), ["policy.backend columns", "both"]),
        (
            changed(reward={"backend": "classifier", "model": "m"}, metric={"explicit": "candidates"}),
            ["candidates", "reward.backend classifier"],
        ),
        (changed(policy={"model": "m", "num_gpus": -1}), ["policy.num_gpus"]),
        (changed(storage={"endpoint_url": "http://key:canary@host"}), ["storage.endpoint_url", "credentials"]),
        (
            changed(reward={"model": "m"}),
            ["reward.model: not used with backend columns; set reward.backend: classifier"],
        ),
        (
            changed(policy={"backend": "columns", "adapter": "a"}),
            ["policy.adapter: not used with backend columns; set policy.backend: torch"],
        ),
        (changed(reward={"backend": "classifer"}), ["reward.backend: 'classifer' is unknown; wanted columns or class"]),
        (changed(metric="explicit"), ["metric: wanted a section such as {name: ...} (got 'explicit')"]),
        (changed(policy="m"), ["policy: wanted a section such as {model: ...} (got 'm')"]),
        (changed(source={"path": "x", "passthrough": "foo"}), ["source.passthrough: wanted a list, such as [foo]"]),
    ],
)
def test_bad_config_names_key_and_remedy(config: dict, parts: list[str]):
    with pytest.raises(ConfigError) as error:
        parse_config(config)
    for part in parts:
        assert part in str(error.value)


def test_number_of_gpus_is_told_in_one_line():
    with pytest.raises(ConfigError) as error:
        parse_config(changed(policy={"model": "m", "num_gpus": "x"}))
    assert str(error.value).splitlines()[1:] == ["  policy.num_gpus: wanted auto or a number of at least 0 (got 'x')"]


def test_rule_across_sections_stands_alone():
    with pytest.raises(ConfigError) as error:
        parse_config(changed(reward=None))
    assert str(error.value).splitlines()[1].startswith("  metric potential reads")


@pytest.mark.parametrize(
    "sections",
    [
        {"scored": "s3://user:canary-secret@bucket/x"},
        {"source": "s3://user:canary-secret@bucket/x"},
        {"storage": {"endpoint_url": "canary-secret@host"}},
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(sections):
    with pytest.raises(ConfigError, match=r"must not carry credentials|wanted a section") as error:
        parse_config(changed(**sections))
    assert "canary" not in str(error.value)


def test_resolved_objective_shows_what_is_used_and_nothing_else():
    assert resolved(parse_config(GOOD))["objective"] == {"name": "simpo", "beta": 2.0}
    rule = {"name": "r-dpo", "alpha": 0.2, "beta": None}
    config = parse_config(changed(objective=rule, reference={"model": "r"}))
    assert resolved(config)["objective"] == {"name": "r-dpo", "beta": 0.1, "alpha": 0.2, "length_sign": 1}
    assert parse_config(resolved(config)) == config


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


def test_backend_may_be_left_out():
    config = parse_config(changed(reward={}))
    assert (config.policy.backend, config.reward.backend) == ("torch", "columns")


def test_chat_template_is_read_where_the_config_is(tmp_path: Path):
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    assert parse_config(changed(tokens={"chat_template": str(template)})).tokens.chat_template == "{{ messages }}"
