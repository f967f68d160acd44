"""Two policies on the same prompts: means, differences, win rates, and the table of rounds."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError, SchemaError
from pipeline.selfplay.evaluation import compare_policies
from pipeline.selfplay.rounds_table import render_rounds
from tests.selfplay.prompt_tables import annotated, annotated_row


def answers(rewards, **columns):
    """rewards: a list of lists, one for each prompt."""
    return annotated(
        *(
            annotated_row(f"p{i:03}", [(f"r{j}", reward) for j, reward in enumerate(each)], **columns)
            for i, each in enumerate(rewards)
        )
    )


def test_means_differences_and_wins_are_those_of_the_definitions():
    rng = np.random.default_rng(1)
    before = rng.normal(0.0, 1.0, (60, 1))
    after = before + rng.normal(0.5, 0.4, (60, 1))
    found = compare_policies(answers(after.tolist()), answers(before.tolist()))
    t_59 = 2.0009954  # 97.5 % quantile, from a table
    for name, values in (("reward", after[:, 0]), ("difference", (after - before)[:, 0])):
        half = t_59 * values.std(ddof=1) / math.sqrt(60)
        expected = (values.mean(), values.mean() - half, values.mean() + half)
        assert tuple(found[name].values()) == pytest.approx(expected, rel=1e-3)
    assert found["win_rate"]["mean"] == np.mean(after > before)
    assert found["difference"]["high"] - found["difference"]["low"] < found["reward"]["high"] - found["reward"]["low"]
    assert (found["num_prompts"], found["num_unscored"]) == (60, 0)
    json.dumps(found, allow_nan=False)


def test_a_policy_ties_with_itself():
    table = answers([[0.1, 0.2], [0.3, 0.4], [-1.0, 2.0]])
    found = compare_policies(table, table)
    assert found["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["win_rate"]["mean"] == 0.5


def test_several_responses_count_as_one_prompt():
    found = compare_policies(answers([[3.0, 0.0], [1.0, 1.0]]), answers([[1.0], [1.0]]))
    assert found["reward"]["mean"] == pytest.approx(1.25)
    assert found["difference"]["mean"] == pytest.approx(0.25)
    assert found["win_rate"]["mean"] == 0.5


rewards_of_prompts = st.lists(
    st.tuples(*[st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=3) for _ in range(2)]),
    min_size=2,
    max_size=12,
)


@given(rewards_of_prompts, st.randoms(use_true_random=False))
def test_swapping_the_policies_turns_the_comparison_and_order_does_not_matter(pairs, rng):
    ours, theirs = (answers([pair[side] for pair in pairs]) for side in (0, 1))
    one, other = compare_policies(ours, theirs), compare_policies(theirs, ours)
    assert one["difference"]["mean"] == pytest.approx(-other["difference"]["mean"])
    assert one["difference"]["low"] == pytest.approx(-other["difference"]["high"])
    assert one["win_rate"]["mean"] == pytest.approx(1 - other["win_rate"]["mean"])
    shuffled = ours.take(rng.sample(range(len(pairs)), len(pairs)))
    again = compare_policies(shuffled, theirs)
    assert again == one


def test_other_prompts_are_refused():
    table = answers([[0.1], [0.2], [0.3]])
    with pytest.raises(DataError, match="'p002'"):
        compare_policies(table.slice(0, 2), table)
    with pytest.raises(DataError, match="stands twice"):
        compare_policies(table.take([0, 0, 1]), table)
    with pytest.raises(SchemaError, match="finish_reasons"):
        compare_policies(table.drop_columns(["finish_reasons"]), table)


def test_prompts_without_a_reward_are_left_out_on_both_sides_and_counted():
    ours = answers([[1.0], [None], [2.0], [5.0]])
    theirs = answers([[0.0], [9.0], [0.0], [math.nan]])
    found = compare_policies(ours, theirs)
    assert (found["num_prompts"], found["num_unscored"]) == (2, 2)
    assert found["reward"]["mean"] == 1.5
    with pytest.raises(DataError, match="only 1 of 4"):
        compare_policies(ours, answers([[0.0], [1.0], [None], [None]]))


def test_dropped_prompts_count_as_prompts_without_a_reward():
    rows = [annotated_row("p000", [("a", 1.0)]), annotated_row("p001", [("b", 2.0)])]
    gone = annotated_row("p002", [], all_rm_scores=None, all_generated_responses=None, status="dropped")
    found = compare_policies(annotated(*rows, gone), answers([[0.0], [0.0], [0.0]]))
    assert (found["num_prompts"], found["num_unscored"]) == (2, 1)


def test_lengths_and_finished_shares_are_over_responses():
    row = annotated_row("p0", [("a", 1.0, 10, "stop"), ("b", 1.0, 30, "length")])
    other = annotated_row("p1", [("a", 1.0, 20, "stop"), ("", None, 0, "stop")])
    found = compare_policies(annotated(row, other), annotated(row, other))
    assert (found["num_responses"], found["response_tokens"], found["finished"]) == (4, 15.0, 0.75)


def test_table_of_rounds_has_a_line_for_what_there_is():
    first = answers([[0.0], [1.0], [0.5]])
    counts = {
        "prompts": 1000,
        "candidates": 990,
        "pairs": 900,
        "scored": 899,
        "selected": 225,
        "tokens_generated": 123456,
        "drops": {"pair: tied_rewards": 3},
        "seconds": {"generate": 12.34, "score": 5.0},
        "margins": {},
    }
    reports = [
        {"round": 0, "evaluation": compare_policies(first, first), "measuring": counts},
        {
            "round": 1,
            "expansions": {"base": counts, "evolved": {**counts, "drops": {"pair: tied_rewards": 4}}},
            "strategies": {"seed": 200, "deepen": 25},
            "training": {"seconds": 60.0, "summary": {}, "policy": "x"},
            "evaluation": compare_policies(answers([[1.0], [1.5], [0.5]]), first),
            "measuring": counts,
            "margins": {"num_pairs": 5, "explicit": 1.5, "implicit_before": -0.25, "implicit_after": 0.125},
        },
        {"round": 2, "expansions": {"base": counts}, "strategies": {"seed": 3}},
    ]
    lines = {line[:34].strip(): line[34:].split("  ") for line in render_rounds(reports).splitlines()}
    cells = {name: [cell.strip() for cell in found if cell.strip()] for name, found in lines.items()}
    assert cells["round"] == ["0", "1", "2"]
    assert cells["held-out reward"][1].startswith("1.000 [")
    assert cells["minus round 0"][1].startswith("+0.500 [")
    assert cells["win rate against round 0"][1].startswith("0.833 [")
    assert cells["win rate against round 0"][2] == "-"
    assert cells["prompts answered"] == ["-", "2,000", "1,000"]
    assert cells["prompts selected, deepen"] == ["-", "25", "0"]
    assert cells["dropped, pair: tied_rewards"] == ["-", "7", "3"]
    assert cells["implicit, after training"] == ["-", "+0.1250", "-"]
    assert cells["seconds, generate"] == ["-", "24.7", "12.3"]
    assert cells["tokens generated"] == ["-", "246,912", "123,456"]
    assert cells["tokens generated to measure"] == ["123,456", "123,456", "-"]
    assert cells["seconds, measure"] == ["17.3", "17.3", "-"]
    assert "tokens scored" not in cells
