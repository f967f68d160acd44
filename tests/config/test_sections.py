"""Everything else: source, objective, tokens, paths, and rules across sections."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import Source, parse_config, parse_self_play, resolved
from pipeline.errors import ConfigError
from tests.config.sections import GOOD, assert_refused, changed

CARRYING = [
    "https://user:canary@hub/x",
    "https://user:can@ary/canary@hub/x",
    "user:canary@head:6379",
    ":canary@head:6379",
    "canary@head:6379",
    "ray://canary@head:10001",
    "abfs://container:canary@account/x",
    "--url=https://user:canary@hub/x",
    "s3://b/x?X-Amz-Credential=a&X-Amz-Signature=canary",
    "abfs://container@account/x?sv=1&sig=canary",
    "https://host/x?access_token=canary",
    "https://host/x?API-Key=canary",
]


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
        (changed(score={"lazy": True}, select=None), ["score.lazy", "add a select section"]),
        *(
            (changed(score={"lazy": True}, select={"fraction": 0.1, **rule}, metric=metric), ["score.lazy: ", *parts])
            for rule, metric, parts in (
                ({}, {"name": "bees-add"}, ["metric bees-add", "use metric potential"]),
                ({}, {"implicit": "signed"}, ["set metric.implicit: absolute"]),
                ({}, {"normalise": "rank"}, ["set metric.normalise: zscore"]),
                ({"per_prompt": 1, "group_by": "lang"}, {}, ["leave out select.per_prompt or group_by"]),
                ({"deduplicate": "near"}, {}, ["select.deduplicate", "leave it out"]),
                ({"where": "policy_logp_chosen > -9"}, {}, ["select.where reads policy_logp_chosen"]),
            )
        ),
        (
            changed(score={"lazy": True}, select={"k": 9}, policy={"backend": "columns"}),
            ["score.lazy saves forwards of the policy"],
        ),
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
        (changed(tokens={"template_kwargs": {"tools": []}}), ["tokens.template_kwargs", "cannot hold tools", "leave"]),
        (changed(tokens={"template": "none", "preset": "paper"}), ["tokens", "template: none is for preset: trl"]),
        (changed(tokens={"template": "jinja"}), ["tokens.template", "chat", "none"]),
        (
            changed(reward={"backend": "classifier", "model": "r", "chat_template": "no-such-file.jinja"}),
            ["reward.", "chat_template", "cannot be read"],
        ),
        (changed(tokens={"chat_template": "/dev/zero"}), ["tokens.chat_template", "no regular file"]),
        (changed(tokens={"chat_template": "/"}), ["tokens.chat_template", "Is a directory"]),
        (changed(tokens={"chat_template": "a\0b"}), ["tokens.chat_template: must not hold a null character"]),
        (changed(source={"path": "a\0b"}), ["source.path: must not hold a null character", r"'a\x00b'"]),
        (changed(scored="a\ud800"), ["scored: must not hold", "surrogate"]),
        (changed(objective={"name": "x" * 1_000_000}), ["objective.name", "(got 'xxx", "xxx...xxx"]),
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
        {"source": {"path": "delta://s3://user:canary-secret@bucket/x@3"}},
        {"storage": {"endpoint_url": "canary-secret@host"}},
        {"policy": {"backend": "https://user:canary@hub/x", "model": "m"}},
        {"policy": {"backend": "vllm", "model": "m", "engine_args": {"a": [{"b": "http://user:canary@host"}]}}},
        {"policy": {"backend": "vllm", "model": "m", "engine_args": {"a": {"env": [{"HF_TOKEN": "canary"}]}}}},
        {"policy": {"backend": "vllm", "model": "m", "engine_args": {"https://user:canary@host": 1}}},
        {"sweep": [{"name": "a", "select": {"stats_from": "s3://user:canary@bucket/x"}}]},
        {"source": {"path": "x", "passthrough": ["s3://user:canary@bucket/x"]}},
        {"run": {"shard_rows": "https://user:canary@host"}},
        {"metric": {"name": "https://user:canary@host"}},
        {"https://user:ca.canary@host": {}},
        *({"policy": {"model": url}} for url in CARRYING),
        *({"run": {"address": url}} for url in CARRYING),
    ],
)
def test_credentials_are_refused_and_not_repeated(sections):
    with pytest.raises(ConfigError) as error:
        parse_config(changed(**sections))
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("url", CARRYING)
def test_sections_of_python_do_not_repeat_credentials_either(url):
    with pytest.raises(ValidationError, match="must not carry credentials") as error:
        Source(path=url)
    assert "canary" not in str(error.value)


def test_training_gets_no_credentials():
    for train in (
        {"method": "command", "command": ["t", "{dataset}", "{output}", "--api-key=canary"]},
        {"method": "command", "command": ["t", "{dataset}", "{output}", "--to=https://user:canary@host"]},
        {"options": {"hub_token": "canary"}},
    ):
        sections = {"path": "/p", "prompts": {"path": "/q"}, "policy": {"model": "m"}, "train": train}
        with pytest.raises(ConfigError, match="must not carry credentials") as error:
            parse_self_play({**sections, "reward": {"backend": "classifier", "model": "r"}})
        assert "canary" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "abfs://container@account.dfs.core.windows.net/x",
        "s3://bucket/run:1@2/x?versionId=3",
        "/data/a:b@c",
        "org/model@main",
        "delta://s3://bucket/prefs@3",
        "lance://prefs.lance@v1",
        "http://127.0.0.1:8265/jobs@2",
        "[::1]:6379",
        "head:6379",
    ],
)
def test_what_only_looks_like_credentials_is_taken(text):
    assert parse_config(changed(policy={"model": text}, run={"address": text})).policy.model == text


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


def test_chat_template_is_a_file_of_a_template_s_size(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text("x" * (1 << 20) + "x")
    for name, said in (("pipe", "no regular file"), ("long", "longer than 1,048,576 bytes")):
        assert_refused(changed(tokens={"chat_template": str(tmp_path / name)}), ["tokens.chat_template", said])


def test_an_objective_and_a_metric_are_one_entry_in_one_file():
    script = (
        "from pipeline.metrics.objectives import OBJECTIVES\nfrom pipeline.metrics.potential import METRICS\n"
        "OBJECTIVES['new'], METRICS['new'] = OBJECTIVES['simpo'], METRICS['explicit']\n"
        "from pipeline.config import Metric, Objective\n"
        "print(Objective(name='new').parameters, Metric(name='new').reads_implicit)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "{'beta': 2.0} False\n"
