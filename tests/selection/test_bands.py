"""Bands between quantiles of a term, and the order and the weights of what is kept."""

import math

import numpy as np
import pytest

from pipeline import api
from pipeline.config import Metric, Select
from pipeline.errors import DataError, SchemaError
from pipeline.metrics import explicit_margin, implicit_margin
from pipeline.selection import summarise
from tests.config.sections import ALONE, assert_refused
from tests.metrics.tables import agreeing_table
from tests.selection.sources import EXPLICIT, SIMPO, CountedSource, best_first, found_in, margins, run, subset
from tests.selection.test_former import applied, manifest_of

POTENTIAL = Metric()


def terms_of(table, metric=POTENTIAL):
    implicit = implicit_margin(table, SIMPO)
    tokens = [table.column(f"num_tokens_{side}").to_numpy() for side in ("chosen", "rejected")]
    return {
        "score": found_in(table, metric).ranking.scores,
        "explicit": explicit_margin(table),
        "implicit": implicit,
        "implicit_abs": np.abs(implicit),
        "length_gap": (tokens[0] - tokens[1]).astype(float),
    }


def ends(values, low, high):
    """The values that so many of all are not above, by counting."""
    ordered = sorted(values)
    return tuple(ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (low, high))


@pytest.mark.parametrize("term", ["score", "explicit", "implicit", "implicit_abs", "length_gap"])
def test_a_band_keeps_what_lies_between_two_quantiles_of_all_ranked_rows(term):
    table = agreeing_table(301)
    values = terms_of(table)[term]
    low, high = ends(values, 0.25, 0.6)
    selection = run(table, POTENTIAL, band={term: [0.25, 0.6]})
    assert {*selection.positions} == {*np.flatnonzero((values >= low) & (values <= high))}
    assert selection.excluded["outside_band"] == 301 - selection.k
    assert manifest_of(selection)["fitted"]["bands"] == {term: [low, high]}
    best = [i for i in best_first(table, found_in(table, POTENTIAL).ranking.scores) if low <= values[i] <= high][:20]
    assert {*run(table, POTENTIAL, band={term: [0.25, 0.6]}, k=20).positions} == {*best}


def test_several_bands_hold_together_and_a_list_is_a_band_of_the_score():
    table = agreeing_table(200)
    both = run(table, POTENTIAL, band={"explicit": [0.5, 1.0], "implicit": [0.0, 0.5]})
    each = [run(table, POTENTIAL, band=band) for band in ({"explicit": [0.5, 1.0]}, {"implicit": [0.0, 0.5]})]
    assert {*both.positions} == {*each[0].positions} & {*each[1].positions}
    assert Select(band=[0.2, 0.8]).band == Select(band={"score": [0.2, 0.8]}).band == {"score": (0.2, 0.8)}


def test_the_margin_of_a_band_is_the_one_that_the_subset_shows():
    table = agreeing_table(200)
    selection = run(table, Metric(name="explicit", explicit="absolute"), band={"explicit": [0.9, 1.0]})
    values = np.abs(explicit_margin(table))
    assert {*selection.positions} == {*np.flatnonzero(values >= ends(values, 0.9, 1.0)[0])}


def test_a_former_band_holds_by_its_values():
    former = run(margins(np.arange(100.0)), band=[0.2, 0.6])
    later = margins([5.0, 19.0, 40.0, 59.0, 60.0, 1000.0])
    assert applied(former, later).selection.positions.tolist() == [1, 2, 3]


def test_rows_without_the_term_are_outside_and_no_values_at_all_are_an_error():
    table = agreeing_table(60, policy_logp_chosen=[None, *[-9.0] * 59])
    selection = run(table, EXPLICIT, band={"implicit": [0.0, 1.0]})
    assert selection.k == 59
    assert selection.excluded["outside_band"] == 1
    for rule, lacks in (
        (
            {"band": {"implicit": [0.1, 0.9]}},
            r"select\.band implicit reads policy_logp_chosen, num_tokens.*null in all",
        ),
        ({"order": "length_ascending"}, r"select\.order reads num_tokens_chosen.*Token counts come with log-probs"),
    ):
        without = agreeing_table(60, policy_logp_chosen=None, num_tokens_chosen=None, num_tokens_rejected=None)
        with pytest.raises(SchemaError, match=lacks):
            run(without, EXPLICIT, k=5, **rule)
    with pytest.raises(DataError, match=r"no row has a score inside select\.band"):
        run(agreeing_table(60), EXPLICIT, band={"explicit": [0.0, 0.01], "score": [0.99, 1.0]})


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("score_descending", lambda row: -row["potential"]),
        ("score_ascending", lambda row: row["potential"]),
        ("length_ascending", lambda row: row["num_tokens_chosen"] + row["num_tokens_rejected"]),
        ("length_descending", lambda row: -row["num_tokens_chosen"] - row["num_tokens_rejected"]),
    ],
)
def test_rows_are_written_in_the_order_that_is_asked_for(order, key):
    table = agreeing_table(150, num_tokens_chosen=[10 + i % 7 for i in range(150)], num_tokens_rejected=[5] * 150)
    plain = subset(run(table, POTENTIAL, fraction=0.4), table).to_pylist()
    selection = run(table, POTENTIAL, fraction=0.4, order=order)
    rows = subset(selection, table).to_pylist()
    assert [key(row) for row in rows] == sorted(key(row) for row in plain)
    assert sorted(row["id"] for row in rows) == sorted(row["id"] for row in plain)
    assert all(row in plain for row in rows)
    assert subset(selection, table, slice(10, 30)).to_pylist() == rows[10:30]
    other_way = table.take(np.arange(149, -1, -1))
    assert subset(run(other_way, POTENTIAL, fraction=0.4, order=order), other_way).to_pylist() == rows


def test_the_call_takes_these_rules_as_it_takes_others():
    table = agreeing_table(80)
    rows = api.select(table, band={"explicit": [0.2, 1.0]}, order="score_ascending", weights=True).to_arrow()
    assert rows.num_rows == 65  # both ends are in
    assert (np.diff(rows.column("potential").to_numpy()) >= 0).all()
    assert rows.column("weight").null_count == 0
    largest = api.select(table, metric="implicit", order="largest", k=5).to_arrow().column("margin_implicit").to_numpy()
    assert np.abs(largest).min() == pytest.approx(np.sort(np.abs(implicit_margin(table, SIMPO)))[-5])


def test_weights_rise_with_the_score_and_are_one_on_average():
    table = agreeing_table(400)
    selection = run(table, POTENTIAL, fraction=0.5, weights=True)
    rows = subset(selection, table)
    scores, weights = (rows.column(name).to_numpy() for name in ("potential", "weight"))
    odds = 1 / (1 + np.exp(-(scores - scores.mean()) / scores.std()))
    np.testing.assert_allclose(weights, odds / odds.mean(), rtol=1e-12)
    assert weights.mean() == pytest.approx(1.0)
    assert 0 < weights.min() < 1 < weights.max() < 2.1
    assert "weight" not in subset(run(table, POTENTIAL, fraction=0.5), table).column_names
    report = summarise(found_in(table, POTENTIAL), CountedSource(table))
    assert "row_weights" not in report
    same = margins([1.0] * 5)
    assert subset(run(same, weights=True, k=3), same).column("weight").to_pylist() == [1.0] * 3


def test_weights_of_a_former_selection_are_those_of_the_same_scores():
    table = agreeing_table(200)
    former = run(table, POTENTIAL, fraction=0.5, weights=True)
    later = applied(former, agreeing_table(90, seed=3), POTENTIAL).selection
    known = dict(zip(former.scores, former.weights, strict=True))
    assert later.weights is not None
    assert former.fitted.weighting == later.fitted.weighting
    assert all(later.fitted.weighting.of_rows(np.array([score]))[0] == weight for score, weight in known.items())


def test_a_column_weight_of_the_source_is_not_overwritten():
    table = agreeing_table(20).append_column("weight", [[1.0] * 20])
    with pytest.raises(SchemaError, match=r"\['weight'\] are in the table already"):
        subset(run(table, weights=True, k=3), table)
    assert subset(run(table, k=3), table).column("weight").to_pylist() == [1.0] * 3


def test_bands_and_orders_that_make_no_sense_are_refused():
    for band, says in (
        ([0.8, 0.2], "a lower and a higher quantile"),
        ([0.5, 0.5], "a lower and a higher quantile"),
        ([0.2, 1.5], "got 1.5"),
        ({"reward": [0.1, 0.9]}, "knows no reward; its terms are score, explicit, implicit, implicit_abs, length_gap"),
        ({}, "select.band"),
    ):
        assert_refused({**ALONE, "select": {"fraction": 0.4, "band": band}}, [says])
    assert Select(k=1).fingerprint() == Select(k=1, order="as_read", weights=False).fingerprint()
    assert {*Select(k=1, order="score_ascending", weights=True, band=[0.1, 0.2]).fingerprint()} > {"order", "weights"}
