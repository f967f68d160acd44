"""Presets of the paper, and what the config says beside them."""

from pathlib import Path

import pytest

from pipeline.config import load_config, parse_config, resolved
from tests.config.sections import ALONE, assert_refused, changed


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (changed(preset="papers"), ["preset: wanted paper or paper-selfplay (got 'papers')"]),
        (changed(preset="paper", metric={"wieght": 1}), ["metric.wieght", "did you mean weight?"]),
        (changed(preset="paper", reward={"backend": "classifier", "model": "m"}), ["candidates", "classifier"]),
        (changed(preset="paper", metric="explicit"), ["metric: wanted a section"]),
        (changed(preset="paper", select={"fraction": 0.4, "k": 10}), ["exactly one of fraction and k"]),
    ],
)
def test_bad_config_with_a_preset_names_key_and_remedy(config: dict, parts: list[str]):
    assert_refused(config, parts)


@pytest.mark.parametrize(("preset", "weight", "fraction"), [("paper", 1.0, 0.4), ("paper-selfplay", 2.5, 0.25)])
def test_preset_is_what_the_authors_set(preset, weight, fraction):
    config = parse_config({**ALONE, "preset": preset})
    assert config.metric.model_dump(exclude={"ratio", "order"}) == {
        "name": "potential", "weight": weight, "normalise": "zscore", "explicit": "candidates", "implicit": "absolute",
    }  # fmt: skip
    assert (config.select.fraction, config.select.seed) == (fraction, 42)
    assert config.objective.name == "simpo"
    assert (config.tokens.preset, config.tokens.max_length, config.tokens.max_prompt_length) == ("paper", 2048, 1800)


def test_what_the_config_says_goes_before_its_preset():
    sections = {"metric": {"explicit": "signed"}, "select": {"seed": 7}, "tokens": {"max_length": 2000}}
    config = parse_config({**ALONE, "preset": "paper", **sections})
    assert (config.metric.explicit, config.metric.weight) == ("signed", 1.0)
    assert (config.select.seed, config.select.fraction) == (7, 0.4)
    assert (config.tokens.max_length, config.tokens.preset) == (2000, "paper")


def test_a_number_takes_the_place_of_the_fraction_of_a_preset():
    select = parse_config({**ALONE, "preset": "paper", "select": {"k": 10}}).select
    assert (select.fraction, select.k, select.seed) == (None, 10, 42)


@pytest.mark.parametrize("bound", ["min_score", "max_score"])
def test_a_score_bound_leaves_the_fraction_of_a_preset(bound):
    assert parse_config({**ALONE, "preset": "paper", "select": {bound: 0.5}}).select.fraction == 0.4


def test_a_former_selection_takes_the_place_of_the_whole_rule_of_a_preset():
    select = parse_config({**ALONE, "preset": "paper", "select": {"stats_from": "s.json"}}).select
    assert select.model_fields_set == {"stats_from"}


def test_objective_of_the_config_takes_the_place_of_that_of_a_preset():
    config = parse_config({**ALONE, "preset": "paper", "objective": {"name": "dpo"}})
    assert resolved(config)["objective"] == {"name": "dpo", "beta": 2.0}


@pytest.mark.parametrize("preset", ["paper", "paper-selfplay"])
def test_resolved_preset_parses_to_itself(preset):
    config = parse_config({**ALONE, "preset": preset, "select": {"k": 10}})
    assert parse_config(resolved(config)) == config


def test_override_reaches_into_a_preset(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("preset: paper\nscored: s\noutput: {path: o}\n")
    assert load_config(path, ["metric.weight=0.5"]).metric.weight == 0.5
    assert load_config(path, ["preset=paper-selfplay"]).metric.weight == 2.5


def test_config_without_preset_has_no_paper_in_it():
    config = parse_config({**ALONE, "select": {"k": 1}})
    assert (config.preset, config.metric.explicit, config.tokens.preset) == (None, "signed", "trl")
