"""Conditions on columns: what they mean, and that nothing else than a condition is taken."""

import pyarrow as pa
import pytest

from pipeline.errors import AlignpotError
from pipeline.where import parse_where

TABLE = pa.table(
    {
        "lang": ["de", "en", None],
        "n": [1, 5, 9],
        "meta": [{"a": 1}, {"a": 2}, {"a": None}],
        "x y": [1.5, 2.5, None],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('lang == "de"', [0]),
        ('lang != "de"', [1]),
        ('not lang == "de"', [1]),
        ("lang is None", [2]),
        ("lang is not None and n < 6", [0, 1]),
        ('n == 9 or lang == "de"', [0, 2]),
        ("n in [1, 9]", [0, 2]),
        ("n not in (1,)", [1, 2]),
        ("0 < n <= 5", [0, 1]),
        ("-n < -4", [1, 2]),
        ("n / 2 > 2.2", [1, 2]),
        ("n * 2 - 1 == 9", [1]),
        ("abs(n - 5) < 1", [1]),
        ("meta.a == 2", [1]),
        ('column("x y") > 2', [1]),
        ('contains(lang, "e") and startswith(lang, "d")', [0]),
        ('length(lang) == 2 and endswith(lower(lang), "n")', [1]),
        ("n > 100", []),
    ],
)
def test_rows_for_which_it_holds_are_found_and_null_is_none_of_them(text: str, expected: list[int]):
    where = parse_where(text)
    where.check(TABLE.schema, "select.where")
    for table in (TABLE, pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])):
        assert where.holds(table, "select.where").nonzero()[0].tolist() == expected
    assert where.holds(TABLE.schema.empty_table(), "select.where").tolist() == []


@pytest.mark.parametrize(
    "text",
    ["", "1 == 1", "n >", '__import__("os").remove("x") == 1', "[n for n in n]", "n if n else n", "lambda: n", 'f"{n}"',
     "n == b'x'", "(n := 1) == 1", "n ** 99 == 1", "n in meta", "n is n", "contains(lang, n)", "n(1)", "-" * 9000 + "n",
     "n == 1 " * 2000],
)  # fmt: skip
def test_what_is_no_condition_is_refused(text: str):
    with pytest.raises(ValueError, match=r"condition|wants|names no column"):
        parse_where(text)


@pytest.mark.parametrize("text", ["n", "zz == 1", 'n > "a"', "meta == 1", "meta.b == 1", "lang == n", "lang.real == 1"])
def test_what_does_not_fit_the_columns_is_refused_with_the_condition(text: str):
    with pytest.raises(AlignpotError, match=r"select\.where"):
        parse_where(text).check(TABLE.schema, "select.where")
