"""The metric: its names and weights, and which margins it reads."""

import pytest

from pipeline.config import parse_config, resolved
from tests.config.sections import assert_refused, changed


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (changed(metric={"wieght": 1}), ["metric.wieght", "did you mean weight?"]),
        (changed(metric={"weight": -1}), ["metric.weight", "got -1"]),
        (changed(metric={"weight": float("nan")}), ["metric.weight"]),
        (
            changed(reward={"backend": "classifier", "model": "m"}, metric={"explicit": "candidates"}),
            ["candidates", "reward.backend classifier"],
        ),
        (changed(metric="explicit"), ["metric: wanted a section such as {name: ...} (got 'explicit')"]),
        (changed(metric={"name": "potental"}), ["metric.name", "potential", "got 'potental'"]),
        (changed(metric={"weight": "automatic"}), ["metric.weight: wanted auto or a number of at least 0"]),
        (changed(metric={"weight": float("inf")}), ["metric.weight"]),
        (changed(metric={"weight": "auto", "normalise": "rank"}), ["weight: auto", "ranks", "another normalise"]),
        (changed(metric={"ratio": 2.0}), ["metric.ratio", "whitening", "got 2.0"]),
        (changed(metric={"ratoi": "std"}), ["metric.ratoi", "did you mean ratio?"]),
        (changed(metric={"normalise": "ranks"}), ["metric.normalise", "zscore", "got 'ranks'"]),
        (changed(metric={"order": "highest"}), ["metric.order", "wanted smallest or largest (got 'highest')"]),
        (changed(metric={"length": "linear"}), ["metric.length", "residual_monotone", "got 'linear'"]),
        (
            changed(metric={"length": "residual", "explicit": "candidates"}),
            ["metric", "lengths of all candidates", "set explicit: signed"],
        ),
        (
            changed(metric={"name": "explicit", "length": "residual"}, policy=None),
            ["metric.length residual reads token counts", "add a policy section"],
        ),
        (
            changed(metric={"name": "explicit"}, policy=None, select={"k": 1, "max_length_gap": 9}),
            ["select.max_length_gap reads token counts", "add a policy section"],
        ),
        *(
            (
                changed(metric={"name": name}, **{missing: None}, select={"band": {term: [0.1, 0.9]}}),
                [f"select.band {term}", f"add a {missing} section"],
            )
            for name, missing, term in (
                ("explicit", "policy", "implicit"),
                ("explicit", "policy", "implicit_abs"),
                ("implicit", "reward", "explicit"),
            )
        ),
        (
            changed(metric={"name": "explicit"}, policy=None, select={"k": 1, "order": "length_ascending"}),
            ["select.order reads token counts", "add a policy section"],
        ),
        (changed(metric={"name": "difficulty"}), ["metric difficulty", "set objective.name: dpo"]),
        (changed(metric={"name": "bees-add"}, reward=None), ["metric bees-add", "add a reward section"]),
        (changed(metric={"name": "sigma-gap"}, policy=None), ["metric sigma-gap", "add a policy section"]),
    ],
)
def test_bad_metric_section_names_key_and_remedy(config: dict, parts: list[str]):
    assert_refused(config, parts)


@pytest.mark.parametrize(
    ("metric", "explicit", "implicit", "candidates"),
    [
        ({"name": "potential"}, True, True, False),
        ({"name": "potential", "weight": 0}, True, False, False),
        ({"name": "potential", "weight": "auto"}, True, True, False),
        ({"name": "potential", "explicit": "candidates"}, True, True, True),
        ({"name": "explicit"}, True, False, False),
        ({"name": "implicit"}, False, True, False),
        ({"name": "random"}, False, False, False),
        ({"name": "bees-add", "explicit": "candidates"}, True, True, False),
        ({"name": "sigma-gap"}, True, True, False),
    ],
)
def test_metric_knows_which_margins_it_reads(metric, explicit, implicit, candidates):
    found = parse_config(changed(metric=metric)).metric
    assert (found.reads_explicit, found.reads_implicit, found.reads_candidates) == (explicit, implicit, candidates)


@pytest.mark.parametrize("metric", [{"normalise": "rank", "weight": 2.0}, {"length": "residual_monotone"},
                                     {"weight": "auto", "ratio": "std"},
                                    {"name": "explicit", "weight": "auto", "normalise": "rank"}])  # fmt: skip
def test_metric_section_is_accepted_and_resolves_to_itself(metric):
    config = parse_config(changed(metric=metric))
    assert parse_config(resolved(config)) == config
