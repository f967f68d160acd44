"""Everything else: source, objective, tokens, paths, and rules across sections."""

from pathlib import Path

import pytest

from pipeline.config import resolved
from pipeline.config_file import parse_config
from pipeline.errors import ConfigError
from tests.config.sections import GOOD, assert_refused, changed


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (changed(polcy={}), ["polcy", "did you mean policy?"]),
        (changed(objective={"name": "dpo"}), ["objective dpo", "add a reference section"]),
        (changed(objective={"name": "dpop"}), ["objective dpop", "add a reference section"]),
        (changed(objective={"name": "simpo", "alpha": 0.1}), ["objective: simpo does not use alpha; leave it out"]),
        (changed(objective={"name": "orpo", "beta": 0.1}), ["orpo does not use beta", "orpo takes no parameter"]),
        (changed(objective={"name": "r-dpo", "alpha": -0.1}), ["alpha of r-dpo", "set length_sign: -1 instead"]),
        (changed(objective={"name": "simop"}), ["objective.name", "simpo", "got 'simop'"]),
        (changed(objective={"btea": None}), ["objective.btea", "did you mean beta?"]),
        (changed(scored="subset/"), ["must differ"]),
        (changed(source={"path": "https://host/pairs.jsonl"}), ["source.path", "object-store URL"]),
        (changed(tokens={"preset": "paper", "max_length": 1000}), ["max_prompt_length", "below max_length"]),
        (changed(tokens={"chat_template": "no-such-file.jinja"}), ["tokens.chat_template", "cannot be read"]),
        ({"source": {"path": "x"}}, ["scored", "required"]),
        (changed(source={"path": "d"}, scored="d/scored"), ["scored", "lies inside source.path"]),
        (changed(output={"path": "d/../scored"}), ["must differ"]),
        (changed(output={"path": "subset", "formats": []}), ["output.formats"]),
        (changed(output={"path": "subset", "formats": ["hf", "hf"]}), ["output.formats", "twice"]),
        (changed(storage={"endpoint_url": "http://key:canary@host"}), ["storage.endpoint_url", "credentials"]),
        (changed(source={"path": "x", "passthrough": "foo"}), ["source.passthrough: wanted a list, such as [foo]"]),
    ],
)
def test_bad_config_names_key_and_remedy(config: dict, parts: list[str]):
    assert_refused(config, parts)


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


def test_chat_template_is_read_where_the_config_is(tmp_path: Path):
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    assert parse_config(changed(tokens={"chat_template": str(template)})).tokens.chat_template == "{{ messages }}"
