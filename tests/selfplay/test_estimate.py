"""The dry run: rows, tokens and GPU-hours of each step, worked out here by hand."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.config import SelfPlayConfig, load_self_play
from pipeline.errors import ConfigError
from pipeline.selfplay.estimate import estimate, render_estimate

REPOSITORY = Path(pipeline.__file__).parent.parent
ROUND = {
    "num_prompts": 1100,
    "prompt_tokens": 100,
    "response_tokens": 300,
    "policy_params": 1e9,
    "reward_params": 2e9,
    "evolved_kept": 0.5,
    "gpu_flops": 1e15,
    "scoring_mfu": 0.5,
    "training_mfu": 0.25,
    "decode_tokens_per_s": 1000,
}


def config(**sections):
    base = {
        "path": "/somewhere",
        "prompts": {"path": "/prompts"},
        "policy": {"model": "m"},
        "reward": {"backend": "classifier", "model": "r"},
        "objective": {"name": "simpo"},
        "generate": {"num_responses": 4},
        "select": {"fraction": 0.2},
        "evolve": {"per_prompt": 3},
        "evaluate": {"num_prompts": 100},
        "estimate": ROUND,
    }
    return SelfPlayConfig.model_validate({**base, **sections})


def steps(**sections):
    return {(step.round, step.step): step for step in estimate(config(**sections))[:-1]}


def test_rows_and_tokens_of_a_round():
    found = steps()
    rows = {name: (found[key].rows) for key in found if key[0] == 1 for name in [key[1]]}
    assert rows == {
        "generate": 1000,
        "annotate": 1000,
        "score": 1000,
        "evolve": 200 * 3,
        "evolved: generate": 300,
        "evolved: annotate": 300,
        "evolved: score": 300,
        "train": 200 + 60,
        "measure: generate": 100,
        "measure: annotate": 100,
        "score after training": 200,
    }
    assert found[1, "generate"].tokens_generated == 1000 * 4 * 300
    assert found[1, "generate"].tokens_read == 1000 * 100
    assert found[1, "annotate"].tokens_read == 1000 * 4 * 400
    assert found[1, "score"].tokens_read == 1000 * 2 * 400
    assert found[1, "train"].tokens_trained == 260 * 2 * 400
    assert found[0, "measure: generate"].tokens_generated == 100 * 300


def test_gpu_hours_follow_the_formulas():
    found = steps()
    decode, prefill = 1000 * 4 * 300 / 1000, 2 * 1e9 * 1000 * 100 / 5e14
    assert found[1, "generate"].gpu_hours == pytest.approx((decode + prefill) / 3600)
    assert found[1, "annotate"].gpu_hours == pytest.approx(2 * 2e9 * 1000 * 4 * 400 / 5e14 / 3600)
    assert found[1, "score"].gpu_hours == pytest.approx(2 * 1e9 * 1000 * 2 * 400 / 5e14 / 3600)
    assert found[1, "train"].gpu_hours == pytest.approx(6 * 1e9 * 260 * 2 * 400 / 2.5e14 / 3600)


def test_settings_change_what_they_should():
    plain = steps()
    reference = steps(objective={"name": "dpo"}, train={"method": "dpo"})
    assert reference[1, "score"].tokens_read == 2 * plain[1, "score"].tokens_read
    adapter = steps(train={"adapter": "lora"})
    assert adapter[1, "train"].gpu_hours == pytest.approx(4 / 6 * plain[1, "train"].gpu_hours)
    beside = steps(objective={"name": "dpo"}, train={"method": "dpo", "precomputed_reference": False})
    assert beside[1, "train"].gpu_hours == pytest.approx(8 / 6 * plain[1, "train"].gpu_hours)
    short = steps(generate={"num_responses": 4, "max_tokens": 30})
    assert short[1, "generate"].tokens_generated == 1000 * 4 * 30
    few = steps(train={"max_steps": 5, "batch_size": 2, "accumulate": 3})
    assert few[1, "train"].tokens_trained == 5 * 2 * 3 * 2 * 400
    two = steps(pair={"per_prompt": 9}, select={"k": 50}, evolve=None)
    assert (two[1, "score"].rows, two[1, "train"].rows) == (2000, 50)
    assert not any(step.startswith("evol") for _, step in two)
    alone = steps(train=None)
    assert {step for number, step in alone if number} == {
        *("generate", "annotate", "score", "evolve"),
        *("evolved: generate", "evolved: annotate", "evolved: score"),
    }


def test_training_on_all_rounds_grows():
    found = steps(rounds=3, train={"data": "all"})
    assert [found[number, "train"].rows for number in (1, 2, 3)] == [260, 520, 780]


@given(st.integers(200, 10_000), st.integers(1, 4))
def test_totals_are_sums_and_rounds_are_alike(num_prompts, rounds):
    (*one, one_total), (*many, total) = (estimate(config(rounds=n), num_prompts) for n in (1, rounds))
    for name in ("tokens_generated", "tokens_read", "tokens_trained", "gpu_hours"):
        assert getattr(total, name) == pytest.approx(math.fsum(getattr(step, name) for step in many))
        first = math.fsum(getattr(step, name) for step in one if step.round == 0)
        of_round = getattr(one_total, name) - first
        assert getattr(total, name) == pytest.approx(first + rounds * of_round)


def test_given_counts_and_limits_are_used():
    assert estimate(config(), 400)[-1].rows == 400
    assert estimate(config(prompts={"path": "/p", "limit": 150}))[-1].rows == 150
    with pytest.raises(ConfigError, match="leaves none"):
        estimate(config(), 100)


def test_table_names_every_step_and_what_was_assumed():
    *steps_, total = estimate(config())
    text = render_estimate([*steps_, total], config().estimate)
    for step in steps_:
        assert f"{step.round}  {step.step}" in text
    assert f"{total.gpu_hours:,.2f}" in text
    assert "1,200,000" in text
    assert "1e9 parameters of the policy, 2e9 of the reward model" in text


def test_the_authors_pipeline_takes_tens_of_gpu_hours():
    total = estimate(load_self_play(REPOSITORY / "jobs/configs/paper_self_play.yaml", ()))[-1]
    assert 10 < total.gpu_hours < 100
    assert total.tokens_generated > 1e8


def test_a_share_of_pairs_is_counted_as_selection_counts_it():
    found = steps(select={"fraction": 0.29}, evolve=None, estimate={**ROUND, "num_prompts": 200})
    assert found[1, "train"].rows == 29  # the product of floats is a little less
