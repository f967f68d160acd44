import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Metric, Objective, Select
from pipeline.errors import ConfigError, SchemaError
from pipeline.metrics import implicit_margin, implicit_reward, objective_columns
from pipeline.metrics.objectives import OBJECTIVES
from pipeline.selection import select
from tests.metrics.tables import scored_table, swapped
from tests.selection.sources import source_of

PAIR = {
    "policy_logp_chosen": [-12.0],
    "policy_logp_rejected": [-30.0],
    "reference_logp_chosen": [-10.0],
    "reference_logp_rejected": [-36.0],
    "num_tokens_chosen": [4],
    "num_tokens_rejected": [5],
}


def test_simpo_is_beta_times_the_mean_log_probability():
    table = scored_table(**PAIR)
    objective = Objective(name="simpo", beta=2.5)
    assert implicit_reward(table, objective, "chosen").tolist() == [2.5 * -3.0]
    assert implicit_reward(table, objective, "rejected").tolist() == [2.5 * -6.0]


def test_dpo_is_beta_times_the_log_ratio():
    table = scored_table(**PAIR)
    objective = Objective(name="dpo", beta=0.1)
    assert implicit_reward(table, objective, "chosen").tolist() == [0.1 * -2.0]
    assert implicit_reward(table, objective, "rejected").tolist() == [0.1 * 6.0]


def test_each_objective_declares_what_it_reads():
    assert set(objective_columns(Objective(name="simpo"))) == {
        "policy_logp_chosen", "policy_logp_rejected", "num_tokens_chosen", "num_tokens_rejected",
    }  # fmt: skip
    assert set(objective_columns(Objective(name="dpo"))) == {
        "policy_logp_chosen", "policy_logp_rejected", "reference_logp_chosen", "reference_logp_rejected",
    }  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_declared_columns_are_all_that_is_read(name):
    objective = Objective(name=name)
    table = scored_table(50)
    narrow = table.select(objective_columns(objective))
    assert (implicit_margin(narrow, objective) == implicit_margin(table, objective)).all()


def test_every_parameter_of_an_objective_is_a_key_of_the_config():
    keys = {*Objective.model_fields} - {"name", "gamma"}
    assert {name for definition in OBJECTIVES.values() for name in definition.defaults} == keys


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_parameter_of_an_objective_moves_its_margin_and_no_other_is_taken(name):
    table = scored_table(50)
    base = implicit_margin(table, Objective(name=name))
    for parameter, default in OBJECTIVES[name].defaults.items():
        other = -default if parameter == "length_sign" else default * 1.5
        assert (implicit_margin(table, Objective(name=name, **{parameter: other})) != base).any()
    for parameter in {"beta", "alpha", "penalty", "length_sign"} - set(OBJECTIVES[name].defaults):
        with pytest.raises(ValueError, match=f"{name} does not use {parameter}; leave it out"):
            Objective(name=name, **{parameter: 1})


def test_the_target_margin_moves_no_margin_and_is_taken_where_the_loss_has_one():
    table = scored_table(50)
    for name, definition in OBJECTIVES.items():
        if definition.target is None:
            with pytest.raises(ValueError, match=f"{name} does not use gamma"):
                Objective(name=name, gamma=1.0)
            continue
        other = Objective(name=name, gamma=1.5)
        assert (Objective(name=name).target, other.target) == (definition.target, 1.5)
        assert (implicit_margin(table, other) == implicit_margin(table, Objective(name=name))).all()
        assert other.fingerprint() == Objective(name=name).fingerprint()


LOGPS = st.floats(-1000.0, -1e-6)
SIDE = st.tuples(LOGPS, LOGPS, st.integers(1, 4000))
SEPARABLE = [name for name, definition in OBJECTIVES.items() if definition.reward is not None]


def pair_of(chosen, rejected):
    names = ("policy_logp", "reference_logp", "num_tokens")
    sides = {"chosen": chosen, "rejected": rejected}
    return scored_table(**{f"{n}_{side}": [v] for side, vs in sides.items() for n, v in zip(names, vs, strict=True)})


@settings(deadline=None, max_examples=60)
@given(chosen=SIDE, rejected=SIDE)
def test_swapping_sides_negates_the_implicit_margin(chosen, rejected):
    table = pair_of(chosen, rejected)
    for name in SEPARABLE:
        objective = Objective(name=name)
        there, back = implicit_margin(table, objective), implicit_margin(swapped(table), objective)
        assert np.array_equal(back, -there, equal_nan=True), name


@settings(deadline=None, max_examples=60)
@given(chosen=SIDE, rejected=SIDE)
def test_dpop_falls_short_of_dpo_by_the_likelihood_that_chosen_lost(chosen, rejected):
    table = pair_of(chosen, rejected)
    margin = implicit_margin(table, Objective(name="dpop", beta=0.5, penalty=3.0))[0]
    lost = max(0.0, chosen[1] - chosen[0])
    dpo = implicit_margin(table, Objective(name="dpo", beta=0.5))[0]
    assert margin == pytest.approx(dpo - 1.5 * lost, rel=1e-12, abs=1e-9)
    assert margin <= dpo


def test_dpop_gives_one_side_no_reward():
    with pytest.raises(ConfigError, match="dpop has no reward of one side"):
        implicit_reward(scored_table(2), Objective(name="dpop"), "chosen")


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if set(OBJECTIVES[name].defaults) >= {"beta"}])
def test_the_margin_scales_with_beta(name):
    table = scored_table(200)
    free = {"alpha": 0.0} if name == "r-dpo" else {}
    one = implicit_margin(table, Objective(name=name, beta=1.0, **free))
    assert (implicit_margin(table, Objective(name=name, beta=4.0, **free)) == 4.0 * one).all()


# Sides of PAIR: lp -12, lp_ref -10, lr -2, n 4 and lp -30, lp_ref -36, lr 6, n 5.
@pytest.mark.parametrize(
    ("objective", "chosen", "rejected"),
    [
        (Objective(name="cpo", beta=0.5), -6.0, -15.0),
        (Objective(name="rrhf"), -3.0, -6.0),
        (Objective(name="slic-reference-free"), -12.0, -30.0),
        (Objective(name="orpo"), -3 - math.log1p(-math.exp(-3)), -6 - math.log1p(-math.exp(-6))),
        (Objective(name="alphapo", beta=2, alpha=0.5), 4 * (1 - math.exp(1.5)), 4 * (1 - math.exp(3))),
        (Objective(name="dpo-norm", beta=5), -2.5, 6.0),
        (Objective(name="ipo"), -0.5, 1.2),
        (Objective(name="ipo-sum"), -2.0, 6.0),
        (Objective(name="kto", beta=0.5), -1.0, 3.0),
        (Objective(name="slic", beta=0.5), -1.0, 3.0),
        (Objective(name="r-dpo", beta=0.5, alpha=0.1), -0.6, 3.5),
        (Objective(name="r-dpo", beta=0.5, alpha=0.1, length_sign=-1), -1.4, 2.5),
        (Objective(name="alpha-dpo", beta=2, alpha=0.5), 2 * (-12 + 1) / 4, 2 * (-30 - 3) / 5),
        (Objective(name="f-dpo-forward-kl", beta=0.5), 0.5 * (1 - math.exp(2)), 0.5 * (1 - math.exp(-6))),
        (Objective(name="f-dpo-js", beta=1), math.log(2 / (1 + math.exp(2))), math.log(2 / (1 + math.exp(-6)))),
    ],
    ids=lambda value: value.name if isinstance(value, Objective) else "",
)
def test_reward_by_hand(objective, chosen, rejected):
    table = scored_table(**PAIR)
    assert implicit_reward(table, objective, "chosen")[0] == pytest.approx(chosen, rel=1e-13)
    assert implicit_reward(table, objective, "rejected")[0] == pytest.approx(rejected, rel=1e-13)


def test_dpop_margin_by_hand():
    assert implicit_margin(scored_table(**PAIR), Objective(name="dpop", beta=0.5, penalty=10.0)) == [-14.0]


def test_alphapo_is_simpo_at_alpha_0_and_tends_to_it():
    table = scored_table(200)
    simpo = implicit_margin(table, Objective(name="simpo", beta=2.5))
    assert (implicit_margin(table, Objective(name="alphapo", beta=2.5, alpha=0.0)) == simpo).all()
    for alpha in (1e-9, -1e-9):
        near = implicit_margin(table, Objective(name="alphapo", beta=2.5, alpha=alpha))
        assert near == pytest.approx(simpo, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("mean", [-1e-300, -1e-12, -0.6931471805599453, -0.7, -40.0, -1e4])
def test_orpo_log_odds_keep_their_digits(mean):
    table = pair_of((mean, -1.0, 1), (-1.0, -1.0, 1))
    exact = mean - (math.log(-math.expm1(mean)) if mean > -1 else math.log1p(-math.exp(mean)))
    assert implicit_reward(table, Objective(name="orpo"), "chosen")[0] == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize(
    ("objective", "logp"),
    [
        (Objective(name="orpo"), 0.0),
        (Objective(name="orpo"), 0.25),
        (Objective(name="alphapo", alpha=40.0), -2000.0),
        (Objective(name="f-dpo-forward-kl"), -9000.0),
    ],
    ids=lambda value: value.name if isinstance(value, Objective) else "",
)
def test_a_margin_out_of_range_is_not_finite_and_counted(objective, logp):
    table = scored_table(40)
    values = table.column("policy_logp_chosen").to_pylist()
    values[7] = logp
    counts = {f"num_tokens_{side}": [100] * 40 for side in ("chosen", "rejected")}
    table = scored_table(policy_logp_chosen=values, **counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        margin = implicit_margin(table, objective)
        selection = select(source_of(table), objective, Metric(), Select(k=5))
    assert np.flatnonzero(~np.isfinite(margin)).tolist() == [7]
    assert selection.excluded["margin_implicit_abs_not_finite"] == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_response_without_tokens_is_dropped_and_counted_where_tokens_are_read(name):
    counts = [0, *range(1, 40)]
    table = scored_table(num_tokens_rejected=counts)
    excluded = select(source_of(table), Objective(name=name), Metric(), Select(k=5)).excluded
    reads = "num_tokens" in OBJECTIVES[name].reads
    assert np.isnan(implicit_margin(table, Objective(name=name))[0]) == reads
    assert excluded["margin_implicit_abs_not_finite"] == int(reads)


@pytest.mark.parametrize("num_tokens", [0, -1, None])
def test_a_response_without_tokens_has_no_simpo_reward(num_tokens):
    table = scored_table(**(PAIR | {"num_tokens_rejected": [num_tokens]}))
    assert np.isnan(implicit_margin(table, Objective(name="simpo"))).all()
    assert np.isfinite(implicit_margin(table, Objective(name="dpo"))).all()


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_a_log_probability_that_is_not_finite_gives_no_finite_margin(bad):
    table = scored_table(**(PAIR | {"policy_logp_chosen": [bad]}))
    for name in OBJECTIVES:
        assert not np.isfinite(implicit_margin(table, Objective(name=name))).any()


def test_a_column_of_text_is_refused_by_name():
    table = scored_table(3)
    broken = table.set_column(
        table.column_names.index("policy_logp_chosen"), "policy_logp_chosen", table.column("id").combine_chunks()
    )
    with pytest.raises(SchemaError, match="policy_logp_chosen has type string"):
        implicit_margin(broken, Objective())


def test_a_missing_column_is_named():
    with pytest.raises(SchemaError, match="num_tokens_chosen"):
        implicit_margin(scored_table(3).drop_columns(["num_tokens_chosen"]), Objective(name="simpo"))


def test_command_lists_every_objective_and_loads_nothing_heavy():
    script = (
        "import sys\nfrom pipeline.cli import app\napp(['objectives'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'ray', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    blocks = {block.splitlines()[0]: block for block in done.stdout.split("\n\n")[1:]}
    assert list(blocks) == list(OBJECTIVES)
    for name, block in blocks.items():
        assert OBJECTIVES[name].formula in block
        assert ("reference  needed" in block) == OBJECTIVES[name].reads_reference
        assert all(f"{parameter} {value:g}" in block for parameter, value in OBJECTIVES[name].defaults.items())
