"""The rule of selection."""

import pytest

from pipeline.config import parse_config, resolved
from pipeline.errors import ConfigError
from tests.config.sections import ALONE, assert_refused, changed


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (changed(select={"fraction": 0}), ["select.fraction", "got 0"]),
        (changed(select={"fraction": 1.5}), ["select.fraction", "got 1.5"]),
        (changed(select={"fraction": 0.4, "k": 10}), ["select", "exactly one of fraction and k"]),
        (changed(select={}), ["select", "fraction and k", "min_score"]),
        (changed(select={"k": 0}), ["select.k", "got 0"]),
        (changed(select={"k": 1.5}), ["select.k", "got 1.5"]),
        (changed(select={"fraction": -0.1}), ["select.fraction", "got -0.1"]),
        (changed(select={"fraction": float("nan")}), ["select.fraction"]),
        (changed(select={"min_score": float("inf")}), ["select.min_score"]),
        (changed(select={"min_score": 2.0, "max_score": 1.0}), ["min_score 2.0 is above max_score 1.0"]),
        (changed(select={"fraction": 0.4, "labels": "flip"}), ["select.labels", "swap", "got 'flip'"]),
        (
            changed(select={"fraction": 0.4, "labels": "swap"}, metric={"name": "implicit"}, reward=None),
            ["select.labels swap reads the rewards", "add a reward section"],
        ),
        (changed(select={"fraction": 0.4, "per_prompt": 0}), ["select.per_prompt", "got 0"]),
        (changed(select={"fraction": 0.4, "deduplicate": "fuzzy"}), ["select.deduplicate", "near", "got 'fuzzy'"]),
        (changed(select={"fraction": 0.4, "deduplicate": "near", "similarity": 0}), ["select.similarity", "got 0"]),
        (changed(select={"fraction": 0.4, "quotas": "equal"}), ["quotas needs group_by"]),
        (changed(select={"fraction": 0.4, "group_by": "g", "quotas": {}}), ["quotas names no group"]),
        (
            changed(select={"fraction": 0.4, "group_by": "g", "quotas": {"a": 0}}),
            ["select.quotas: wanted proportional"],
        ),
        (
            changed(select={"fraction": 0.4, "group_by": "g", "quotas": {"a": -1}}),
            ["select.quotas: wanted proportional"],
        ),
        (changed(select={"fraction": 0.4, "group_by": "g", "quotas": "even"}), ["select.quotas: wanted proportional"]),
        (
            changed(select={"min_score": 0.5, "group_by": "g"}),
            ["group_by shares out a number of rows", "fraction or k"],
        ),
        (changed(select={"stats_from": "s.json", "fraction": 0.4, "k": 10}), ["exactly one of fraction and k"]),
        (changed(select={"fraction": 0.4, "engine": "spark"}), ["select.engine", "got 'spark'"]),
        (changed(select={"fraction": 0.4, "split": {}}), ["select.split", "{test: 0.05}"]),
        (changed(select={"fraction": 0.4, "split": {"test": 0.5, "dev": 0.5}}), ["select.split", "below 1"]),
        (changed(select={"fraction": 0.4, "split": {"test": 0}}), ["select.split", "got 0"]),
        (changed(select={"fraction": 0.4, "split": {"train": 0.1}}), ["select.split", "train cannot be held out"]),
        (changed(select={"fraction": 0.4, "split": {"te/st": 0.1}}), ["select.split", "te/st"]),
    ],
)
def test_bad_select_section_names_key_and_remedy(config: dict, parts: list[str]):
    assert_refused(config, parts)


def test_groups_of_numbers_may_have_quotas():
    given = {"k": 3, "group_by": "kind", "quotas": {1: 2, 2: 1}}
    assert parse_config({**ALONE, "select": given}).select.quotas == {"1": 2.0, "2": 1.0}


@pytest.mark.parametrize("labels", ["drop", "swap"])
def test_bradley_terry_without_contradicted_labels_is_refused(labels):
    with pytest.raises(ConfigError, match=r"bradley-terry .* select\.labels: keep"):
        parse_config({**ALONE, "metric": {"weight": "auto", "ratio": "bradley-terry"},
                      "select": {"k": 3, "labels": labels}})  # fmt: skip


@pytest.mark.parametrize(
    "select",
    [
        {"fraction": 1.0},
        {"min_score": 1.0, "max_score": 1.0},
        {"fraction": 0.5, "min_score": -1},
        {"k": 5, "group_by": "origin", "quotas": {"a": 1, "b": 0.5}},
        {"k": 5, "group_by": "origin", "quotas": "equal", "labels": "swap", "per_prompt": 1, "deduplicate": "near"},
        {"stats_from": "subset/_SUCCESS.json"},
        {"stats_from": "subset/_SUCCESS.json", "group_by": "origin", "fraction": 0.4, "labels": "drop"},
    ],
)
def test_select_section_is_accepted_and_resolves_to_itself(select):
    config = parse_config(changed(select=select))
    assert parse_config(resolved(config)) == config
    for name, value in select.items():
        assert getattr(config.select, name) == value
