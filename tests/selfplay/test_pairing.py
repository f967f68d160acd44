"""Pairs out of K responses: which ones, why none, and what no order of the responses can change."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import schema as s
from pipeline.config import Pairing
from pipeline.selfplay.pairing import make_pairs
from pipeline.sources.rows import content_digest
from tests.selfplay.prompt_tables import annotated, annotated_row, dropped_reasons

FIVE = [("a", 0.5), ("b", 2.0), ("c", -1.0), ("d", 1.0), ("e", 0.0)]
RULES = ("best-worst", "sweet-spot", "random")

responses_strategy = st.lists(
    st.tuples(
        st.sampled_from(["", " ", "a", "b", "c", "d", "e", "f", "g"]),
        st.one_of(st.none(), st.sampled_from([math.nan, -2.0, -0.5, 0.0, 0.25, 1.0, 3.0])),
        st.integers(1, 40),
        st.sampled_from(["stop", "length"]),
    ),
    max_size=9,
)
pairing_strategy = st.builds(
    Pairing,
    rule=st.sampled_from(RULES),
    per_prompt=st.integers(1, 4),
    min_margin=st.sampled_from([0.0, 0.6]),
    max_margin=st.sampled_from([None, 3.5]),
    min_tokens=st.sampled_from([1, 5]),
    finished_only=st.booleans(),
    max_length_ratio=st.sampled_from([None, 3.0]),
    seed=st.integers(0, 5),
)


def pairs_of(responses, rule):
    return make_pairs(annotated(("p", responses)), rule).to_pylist()


def texts(rows):
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


def reason(responses, **rule):
    return dropped_reasons(make_pairs(annotated(("p", responses)), Pairing(**rule))).get("p")


def test_best_against_worst_then_inwards():
    assert texts(pairs_of(FIVE, Pairing())) == [("b", "c")]
    assert texts(pairs_of(FIVE, Pairing(per_prompt=9))) == [("b", "c"), ("d", "e")]


def test_sweet_spot_rejects_another_than_the_worst_of_many():
    scores = [0.5, 1.0, -3.0, -1.9, 0.8, 0.2, 0.4, 0.6, 0.3, 0.1, 0.7, 0.9, 0.25, 0.55, 0.45, -0.7]
    many = [(f"answer {i:02}", score) for i, score in enumerate(scores)]
    assert texts(pairs_of(many, Pairing(rule="sweet-spot"))) == [("answer 01", "answer 03")]
    assert texts(pairs_of(FIVE, Pairing(rule="sweet-spot"))) == [("b", "c")]


def test_random_pairs_follow_the_seed_and_the_prompt():
    rule = Pairing(rule="random", per_prompt=1)
    drawn = {texts(make_pairs(annotated((f"p{i}", FIVE)), rule).to_pylist())[0] for i in range(200)}
    assert len(drawn) == 10
    assert pairs_of(FIVE, rule) == pairs_of(FIVE, rule)
    assert len({texts(pairs_of(FIVE, Pairing(rule="random", seed=seed)))[0] for seed in range(30)}) > 3


def test_pair_has_the_id_of_its_content_and_what_the_prompt_carried():
    row = annotated_row("p", FIVE, parent_id="seed-1", strategy="deepen", round=2)
    (pair,) = make_pairs(annotated(row), Pairing()).to_pylist()
    assert pair["id"] == pair["content_digest"] == content_digest(pair["prompt"], pair["chosen"], pair["rejected"])
    assert (pair["prompt_id"], pair["parent_id"], pair["strategy"], pair["round"]) == ("p", "seed-1", "deepen", 2)
    assert (pair["reward_chosen"], pair["reward_rejected"]) == (2.0, -1.0)
    assert pair["rewards_all"] == [2.0, 1.0, 0.5, 0.0, -1.0]
    assert pair["status"] == s.KEPT


@pytest.mark.parametrize(
    ("responses", "rule", "expected"),
    [
        ([("a", 1.0), ("b", 1.0)], {}, "tied_rewards"),
        ([("a", 1.0), ("a", 0.0), ("a", 2.0)], {}, "identical_responses"),
        ([("a", 1.0), ("", 0.0), ("  ", -1.0)], {}, "empty_response"),
        ([("a", 1.0)], {}, "too_few_candidates"),
        ([], {}, "too_few_candidates"),
        ([("a", 1.0), ("b", None)], {}, "null_score"),
        ([("a", 1.0), ("b", math.inf)], {}, "non_finite_score"),
        ([("a", 1.0), ("b", 0.0, 9, "length")], {"finished_only": True}, "unfinished_response"),
        ([("a", 1.0, 3), ("b", 0.0, 2)], {"min_tokens": 3}, "length_out_of_bounds"),
        ([("a", 1.0, 30), ("b", 0.0, 9)], {"max_length_ratio": 3}, "length_out_of_bounds"),
        ([("a", 1.0), ("b", 0.5)], {"min_margin": 0.6}, "margin_out_of_bounds"),
        ([("a", 1.0), ("b", 0.5)], {"max_margin": 0.4}, "margin_out_of_bounds"),
        ([("a", 1.0), ("b", 0.0, 9, "length")], {}, None),
        ([("a", 1.0), ("b", 0.5)], {"min_margin": 0.5, "max_margin": 0.5}, None),
        ([("a", 1.0, 30), ("b", 0.0, 10)], {"max_length_ratio": 3}, None),
    ],
)
def test_prompt_without_a_pair_says_why(responses, rule, expected):
    assert reason(responses, **rule) == expected


def test_lists_of_different_lengths_drop_the_prompt():
    row = annotated_row("p", FIVE, all_rm_scores=[1.0])
    assert dropped_reasons(make_pairs(annotated(row), Pairing())) == {"p": "candidate_count_mismatch"}


def test_pair_out_of_bounds_is_left_out_and_the_others_stay():
    rule = Pairing(per_prompt=2, max_margin=2.0)
    assert texts(pairs_of(FIVE, rule)) == [("d", "e")]


def test_prompts_dropped_before_stay_as_they_were():
    why = {"status": "dropped", "drop_stage": "generate", "drop_reason": "prompt_too_long"}
    (row,) = make_pairs(annotated(annotated_row("p", [], all_generated_responses=None, **why)), Pairing()).to_pylist()
    assert {name: row[name] for name in why} == why
    assert row["id"] == row["prompt_id"] == "p"


@given(responses_strategy, pairing_strategy)
def test_every_pair_keeps_the_rule_and_no_prompt_vanishes(responses, rule):
    rows = pairs_of(responses, rule)
    pairs = [row for row in rows if row["status"] == s.KEPT]
    assert 1 <= len(rows) <= max(1, rule.per_prompt)
    assert len(rows) == (len(pairs) or 1)
    said = [text for pair in texts(pairs) for text in pair]
    assert len(said) == len(set(said))
    for row in pairs:
        margin = row["reward_chosen"] - row["reward_rejected"]
        assert margin > 0
        assert rule.min_margin <= margin <= (rule.max_margin or math.inf)
        assert row["rewards_all"] == sorted(row["rewards_all"], reverse=True)
        assert {row["reward_chosen"], row["reward_rejected"]} <= set(row["rewards_all"])
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert (row["status"] == s.DROPPED) == (row["drop_stage"] == "pair") == (row["drop_reason"] is not None)


@given(responses_strategy, pairing_strategy, st.randoms(use_true_random=False))
def test_order_of_the_responses_changes_nothing(responses, rule, random):
    shuffled = random.sample(responses, len(responses))
    assert pairs_of(responses, rule) == pairs_of(shuffled, rule)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=8, unique=True), st.integers(1, 4))
def test_best_and_worst_change_places_with_the_sign_of_the_rewards(rewards, per_prompt):
    rule = Pairing(per_prompt=per_prompt)
    forward = texts(pairs_of([(f"answer {r}", float(r)) for r in rewards], rule))
    backward = texts(pairs_of([(f"answer {r}", float(-r)) for r in rewards], rule))
    assert [(worse, better) for better, worse in forward] == backward


@given(st.lists(responses_strategy, max_size=5), pairing_strategy)
def test_prompts_do_not_depend_on_each_other(many, rule):
    rows = [(f"p{i}", responses) for i, responses in enumerate(many)]
    together = make_pairs(annotated(*rows), rule).to_pylist()
    assert together == [pair for row in rows for pair in make_pairs(annotated(row), rule).to_pylist()]
    assert {row["prompt_id"] for row in together} == {id_ for id_, _ in rows}
