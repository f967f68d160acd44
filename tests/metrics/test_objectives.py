import numpy as np
import pytest

from pipeline.config import Objective
from pipeline.errors import SchemaError
from pipeline.metrics import implicit_margin, implicit_reward, objective_columns
from pipeline.metrics.objectives import OBJECTIVES
from tests.metrics.tables import scored_table, swapped

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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_swapping_sides_negates_the_implicit_margin(name):
    table = scored_table(200)
    objective = Objective(name=name, beta=0.7)
    assert (implicit_margin(swapped(table), objective) == -implicit_margin(table, objective)).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_margin_scales_with_beta(name):
    table = scored_table(200)
    one = implicit_margin(table, Objective(name=name, beta=1.0))
    assert (implicit_margin(table, Objective(name=name, beta=4.0)) == 4.0 * one).all()


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
