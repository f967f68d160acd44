"""Groups that share a selection, each against a sort of its own rows."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Metric, Select
from pipeline.errors import DataError, SchemaError
from pipeline.metrics import explicit_margin
from pipeline.selection import select
from tests.metrics.tables import agreeing_table
from tests.selection.sources import (
    EXPLICIT,
    SIMPO,
    CountedSource,
    kept_ids,
    margins,
    run,
    source_of,
    subset,
    with_columns,
)


def grouped(seed=0, num_rows=120, shares=(0.5, 0.3, 0.15, 0.05)):
    rng = np.random.default_rng(seed)
    table = margins(np.round(rng.normal(size=num_rows), 1).tolist())
    names = rng.choice(np.array(["code", "chat", "math", None], dtype=object), num_rows, p=shares)
    return with_columns(table, {"origin": pa.array(names.tolist(), pa.string())})


def best_of_groups(table, quotas):
    """Ids that a brute-force sort inside each group gives."""
    columns = [table.column(name).to_pylist() for name in ("origin", "reward_chosen", "id")]
    rows = sorted(zip(*columns, strict=True), key=lambda row: (-row[1], row[2]))
    return {row[2] for name, k in quotas.items() for row in [r for r in rows if r[0] == name][:k]}


@settings(max_examples=15)
@given(
    st.integers(0, 10**6), st.sampled_from(["proportional", "equal", {"math": 1.0, "code": 2.5}]), st.integers(1, 14)
)
def test_groups_keep_the_best_of_each_and_sum_to_k(seed, quotas, k):
    table = grouped(seed)
    selection = run(table, group_by="origin", quotas=quotas, k=k)
    kept = {name: cut.k for name, cut in selection.cuts.items()}
    assert sum(kept.values()) == selection.k == k
    assert kept_ids(selection, table) == best_of_groups(table, kept)


def test_each_group_is_cut_where_a_selection_of_it_alone_would_be():
    table = grouped(shares=(0.5, 0.3, 0.2, 0.0))
    selection = run(table, group_by="origin", fraction=0.3)
    for name, cut in selection.cuts.items():
        alone = table.filter(pa.array([origin == name for origin in table.column("origin").to_pylist()]))
        assert cut == run(alone, k=cut.k).cuts[None]


def test_group_statistics_are_those_of_the_whole_set():
    table = with_columns(agreeing_table(150), {"origin": ["a", "b", "c"] * 50})
    selection = run(table, Metric(), group_by="origin", fraction=0.3)
    assert selection.fitted.to_dict() == run(table, Metric(), fraction=0.3).fitted.to_dict()


def test_rows_without_a_group_and_groups_without_a_quota_are_counted():
    table = grouped()
    sizes = Counter(table.column("origin").to_pylist())
    selection = run(table, group_by="origin", quotas={"code": 1.0}, k=10)
    assert selection.excluded["group_null"] == sizes[None] > 0
    assert selection.excluded["group_without_quota"] == sizes["chat"] + sizes["math"]
    assert [*selection.cuts] == [*selection.to_dict()["groups"]] == ["code"]
    assert {"code"} == set(subset(selection, table).column("origin").to_pylist())


def test_ties_inside_a_group_go_by_id():
    table = with_columns(margins([1.0] * 30), {"origin": ["a", "b"] * 15})
    selection = run(table, group_by="origin", k=8)
    for name in "ab":
        ids = sorted(id_ for id_, origin in zip(*(table.column(c).to_pylist() for c in ("id", "origin")), strict=True)
                     if origin == name)  # fmt: skip
        assert set(ids[:4]) <= kept_ids(selection, table)
    assert selection.k == 8
    assert [(cut.num_tied, cut.num_tied_kept) for cut in selection.cuts.values()] == [(15, 4), (15, 4)]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array([3, 20, 3, 20]), ("20", "3")),
        (pa.array([True, False, True, False]), ("false", "true")),
        (pa.array(["x", "y", "x", "y"]).dictionary_encode(), ("x", "y")),
        (pa.array(["é", "", "é", ""], pa.large_string()), ("", "é")),
    ],
)
def test_groups_may_be_whole_numbers_truth_values_or_categories(values, names):
    table = with_columns(margins([1.0, 2.0, 3.0, 4.0]), {"origin": values})
    selection = run(table, group_by="origin", k=2)
    assert tuple(selection.cuts) == names
    assert selection.positions.tolist() == [2, 3]


def test_a_group_column_of_another_type_is_refused_by_name():
    table = with_columns(margins([1.0, 2.0]), {"origin": [0.5, 0.25]})
    with pytest.raises(DataError, match=r"select\.group_by origin has type double; wanted text, whole numbers"):
        run(table, group_by="origin", k=1)


def test_a_group_column_that_is_not_there_is_named():
    with pytest.raises(SchemaError, match="origin"):
        run(margins([1.0, 2.0]), group_by="origin", k=1)


def test_a_group_column_that_is_null_everywhere_is_refused():
    table = with_columns(margins([1.0, 2.0]), {"origin": pa.nulls(2, pa.string())})
    with pytest.raises(DataError, match=r"select\.group_by origin is null in every row"):
        run(table, group_by="origin", k=1)


def test_a_named_group_that_no_row_belongs_to_is_one_clear_error():
    with pytest.raises(DataError, match=r"'maths'.*'chat', 'code', 'math'"):
        run(grouped(), group_by="origin", quotas={"maths": 1.0, "code": 1.0}, k=5)


def test_a_group_too_small_for_its_quota_is_one_clear_error():
    with pytest.raises(DataError, match=r"'math': 50 of"):
        run(grouped(), group_by="origin", quotas={"math": 1.0}, k=50)


@pytest.mark.parametrize("cuts", [(), (0.5,)])
@pytest.mark.parametrize("sizes", [(2000,), (300,)])
def test_a_column_of_more_than_a_thousand_values_names_no_groups(sizes, cuts):
    for num_values in (1000, 1001):
        values = [f"{i % num_values}" for i in range(1001)]
        source = CountedSource(with_columns(margins([float(i % 7) for i in range(1001)]), {"origin": values}), sizes)
        source.cuts = cuts
        rule = Select(group_by="origin", k=500)
        if num_values > 1000:
            with pytest.raises(DataError, match=r"select\.group_by origin has more than 1000 values"):
                select(source, SIMPO, EXPLICIT, rule)
        else:
            assert select(source, SIMPO, EXPLICIT, rule).k == 500


def test_a_thousand_groups_are_each_cut_by_themselves():
    values = np.random.default_rng(0).normal(size=4000).tolist()
    table = with_columns(margins(values), {"origin": [str(i % 1000) for i in range(4000)]})
    selection = select(source_of(table), SIMPO, EXPLICIT, Select(group_by="origin", k=2000))
    assert kept_ids(selection, table) == best_of_groups(table, {str(i): 2 for i in range(1000)})


def test_groups_are_shared_out_among_what_the_band_leaves():
    table = grouped()
    inside = table.filter(pa.array(np.abs(explicit_margin(table)) <= 0.5))
    rule = {"group_by": "origin", "fraction": 0.5}
    banded, alone = run(table, min_score=-0.5, max_score=0.5, **rule), run(inside, **rule)
    assert kept_ids(banded, table) == kept_ids(alone, inside)
    assert banded.cuts == alone.cuts
