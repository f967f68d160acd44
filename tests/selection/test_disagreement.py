"""Judges who disagree: the same two answers, preferred in both orders, are counted and left out as the rule says."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Objective, Select
from pipeline.errors import DataError
from pipeline.selection import Query, TableSource, select_many
from pipeline.selection.report import render, summarise
from tests.selection.sources import EXPLICIT, CountedSource, ElsewherePasses


def judged(votes, prompt="p"):
    """Rows of one prompt, each "ab" for chosen a and rejected b; as in a scored dataset, equal pairs have one id."""
    return [
        {
            "id": f"{prompt}-{vote}",
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": vote[0]}],
            "rejected": [{"role": "assistant", "content": vote[1]}],
            "content_digest": f"{prompt}-{vote}",
        }
        for vote in votes
    ]


def source_of(*groups):
    rows = [{**row, "reward_chosen": 1.0, "reward_rejected": 0.0} for group in groups for row in group]
    return rows, TableSource(table=pa.Table.from_pylist(rows))


def found(source, rule, passes=None, **select):
    query = Query(objective=Objective(), metric=EXPLICIT, rule=Select(min_score=-9, disagreement=rule, **select))
    [found] = select_many(source, [query], passes)
    return found


AGREE = judged(["ab", "ab"], "agree")
DIVIDED = judged(["ab", "ba"], "divided")
OUTVOTED = judged(["ab", "ba", "ab"], "outvoted")
OTHER_ANSWERS = judged(["ab", "bc", "ca"], "others")
KEPT = {
    None: 9,
    "keep": 9,  # with one row for each id
    "majority": 1 + 0 + 1 + 3 + 1,
    "drop": 1 + 0 + 0 + 3 + 1,
}


@pytest.mark.parametrize("rule", KEPT)
def test_rule_decides_what_becomes_of_rows_that_are_disagreed_on(rule):
    other_tools = [{**row, "tools": "[1]"} for row in judged(["ba"], "agree")]
    rows, source = source_of(AGREE, DIVIDED, OUTVOTED, OTHER_ANSWERS, other_tools)
    rows = [{"tools": None, **row, "id": row["id"] + str(row.get("tools"))} for row in rows]
    source = TableSource(table=pa.Table.from_pylist(rows))
    got = found(source, rule)
    ids = [rows[place]["id"] for place in got.selection.positions]
    assert len(ids) == len({*ids}) == KEPT[rule]
    if rule == "majority":
        assert [id_ for id_ in ids if "outvoted" in id_] == ["outvoted-abNone"]
    num_divided = len(DIVIDED) + len(OUTVOTED)
    assert got.selection.num_disagreed == (None if rule is None else num_divided)
    assert ("rows on which judges disagree" in render(summarise(got, source))) == (rule is not None)
    assert sum(got.selection.excluded.values()) == len(rows) - len(ids)


def test_votes_are_counted_over_all_parts_and_in_any_order():
    rows, _ = source_of(*(judged(["ab", "ba", "ab"], f"p{i}") for i in range(40)))
    expected = None
    for order in (np.arange(120), np.random.default_rng(0).permutation(120)):
        shuffled = CountedSource(pa.Table.from_pylist([rows[i] for i in order]))
        got = found(shuffled, "majority", ElsewherePasses()).selection
        assert (got.num_disagreed, got.k) == (120, 40)
        expected = expected or got.id_digest
        assert got.id_digest == expected


def test_votes_are_those_of_the_source_where_labels_are_swapped():
    rows, _ = source_of(DIVIDED, AGREE)
    for row, reward in zip(rows, (1.0, -1.0, 1.0, 1.0), strict=True):
        row["reward_chosen"] = reward
    source = TableSource(table=pa.Table.from_pylist(rows))
    assert found(source, "keep", labels="swap").selection.num_disagreed == 2


def test_text_is_read_only_where_the_rule_is_set():
    for rule, reads_text in ((None, False), ("keep", True)):
        source = CountedSource(source_of(AGREE, DIVIDED)[1].table)
        found(source, rule)
        assert ("chosen" in {*itertools.chain(*source.readings)}) == reads_text


def test_nothing_left_is_an_error_that_names_the_rule():
    with pytest.raises(DataError, match=r"no scored rows that select\.disagreement"):
        found(source_of(DIVIDED)[1], "drop")
