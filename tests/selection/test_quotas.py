"""Quotas: whole numbers that sum to k, fair to within a row, and the same for any order of the groups."""

import random
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DataError
from pipeline.selection.quotas import allocate

SIZES = st.dictionaries(st.text(max_size=3), st.integers(0, 40), min_size=1, max_size=8)


@given(sizes=SIZES, data=st.data(), rule=st.sampled_from(["proportional", "equal"]))
def test_quotas_sum_to_k_and_fit_their_groups_in_any_order(sizes, data, rule):
    k = data.draw(st.integers(0, sum(sizes.values())))
    quotas = allocate(rule, sizes, k)
    assert sum(quotas.values()) == k
    assert set(quotas) == set(sizes)
    assert all(0 <= quotas[name] <= sizes[name] for name in sizes)
    names = list(sizes)
    random.Random(k).shuffle(names)
    assert [*allocate(rule, {name: sizes[name] for name in names}, k).items()] == [*quotas.items()]


@given(sizes=SIZES, data=st.data())
def test_proportional_quotas_stay_within_a_row_of_their_share(sizes, data):
    total = sum(sizes.values())
    k = data.draw(st.integers(0, total))
    for name, quota in allocate("proportional", sizes, k).items():
        assert abs(quota - Fraction(k * sizes[name], total or 1)) < 1


@given(sizes=SIZES, data=st.data())
def test_equal_quotas_differ_only_where_a_group_is_used_up_or_names_come_first(sizes, data):
    k = data.draw(st.integers(0, sum(sizes.values())))
    quotas = allocate("equal", sizes, k)
    level = max(quotas.values())
    open_groups = sorted(name for name in sizes if quotas[name] < sizes[name])
    assert all(quotas[name] >= level - 1 for name in open_groups)
    reached = [name for name in sorted(sizes) if sizes[name] >= level]
    assert [quotas[name] for name in reached] == sorted((quotas[name] for name in reached), reverse=True)


@given(weights=st.dictionaries(st.sampled_from("abcde"), st.floats(1e-6, 1e6), min_size=1), k=st.integers(0, 50))
def test_given_quotas_follow_the_weights_and_leave_the_others_out(weights, k):
    sizes = dict.fromkeys("abcdef", 50)
    quotas = allocate(weights, sizes, k)
    assert sum(quotas.values()) == k
    total = sum(Fraction(str(w)) for w in weights.values())
    for name in sizes:
        share = k * Fraction(str(weights[name])) / total if name in weights else 0
        assert abs(quotas[name] - share) < 1
        assert (name in weights) or quotas[name] == 0


@given(sizes=SIZES, k=st.integers(0, 100))
def test_given_quotas_by_size_are_the_proportional_ones(sizes, k):
    sizes = {name: size for name, size in sizes.items() if size}
    assume(sum(sizes.values()) >= k)
    assume(sizes)
    assert allocate(sizes, sizes, k) == allocate("proportional", sizes, k)


@pytest.mark.parametrize(
    ("rule", "sizes", "k", "wanted"),
    [
        ("proportional", {"b": 50, "a": 30, "c": 20}, 10, {"a": 3, "b": 5, "c": 2}),
        ("proportional", {"b": 1, "a": 1, "c": 1}, 2, {"a": 1, "b": 1, "c": 0}),  # ties by name
        ("proportional", {"a": 5, "b": 3, "c": 1}, 4, {"a": 2, "b": 1, "c": 1}),  # 2.22, 1.33, 0.44
        ("equal", {"a": 2, "b": 100, "c": 100}, 31, {"a": 2, "b": 15, "c": 14}),
        ("equal", {"c": 9, "a": 9, "b": 9}, 8, {"a": 3, "b": 3, "c": 2}),
        ("equal", {"a": 1, "b": 1, "c": 1}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"code": 0.1, "chat": 0.2}, {"chat": 99, "code": 99, "math": 99}, 30, {"chat": 20, "code": 10, "math": 0}),
        ({"a": 2, "b": 1}, {"a": 9, "b": 9}, 4, {"a": 3, "b": 1}),
    ],
)
def test_quotas_of_known_cases(rule, sizes, k, wanted):
    assert allocate(rule, sizes, k) == wanted


def test_weights_are_the_decimals_that_were_written():
    # Shares of 1.5 and 0.5 tie and the first name wins; as binary floats, 0.3 is a little less and 0.1 a little more.
    assert allocate({"a": 0.3, "b": 0.1}, {"a": 9, "b": 9}, 2) == {"a": 2, "b": 0}
    assert allocate({"a": 0.15, "b": 0.15, "c": 0.7}, dict.fromkeys("abc", 99), 10) == {"a": 2, "b": 1, "c": 7}


def test_a_group_that_is_not_there_is_named_with_those_that_are():
    sizes = {f"group-{i:02d}": 5 for i in range(13)}
    with pytest.raises(DataError) as caught:
        allocate({"maths": 1, "group-03": 1}, sizes, 4)
    message = str(caught.value)
    assert "'maths'" in message
    assert "'group-09' and 3 more" in message
    assert "group-10" not in message


def test_a_group_smaller_than_its_quota_is_refused_with_both_counts():
    with pytest.raises(DataError, match=r"1 groups .*'b': 30 of 7.*weights"):
        allocate({"a": 1, "b": 1}, {"a": 70, "b": 7}, 60)


@pytest.mark.parametrize("rule", ["proportional", "equal", {"a": 1.0}])
def test_more_rows_than_there_are_is_refused(rule):
    with pytest.raises(DataError, match="8 rows are wanted of 2 groups that hold 7"):
        allocate(rule, {"a": 3, "b": 4}, 8)


@pytest.mark.parametrize("weights", [{"a": 0}, {"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}, {}, {"a": True}])
def test_weights_that_are_no_positive_numbers_are_refused(weights):
    with pytest.raises(ConfigError, match="quota"):
        allocate(weights, {"a": 3}, 1)
