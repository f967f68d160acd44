"""Leaving out rows that repeat a better one: the greedy rule, the texts it compares, and rows fed bit by bit."""

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rensa import RMinHash

from pipeline.errors import SchemaError
from pipeline.schema import MESSAGES, messages_type
from pipeline.selection.near_duplicates import NearDuplicates, normalised, row_texts, shingles


def words(rng, num):
    return [f"w{rng.randrange(10**9)}" for _ in range(num)]


def like(rng, text, similarity):
    """A text whose 3-grams have about this Jaccard similarity with those of `text`: its start, then other words."""
    own = text.split()
    num_shared = round(2 * similarity / (1 + similarity) * len(own))
    return " ".join(own[:num_shared] + words(rng, len(own) - num_shared))


def jaccard(ours, theirs):
    a, b = set(shingles(normalised(ours))), set(shingles(normalised(theirs)))
    return len(a & b) / len(a | b)


def greedy(texts, limit):
    kept = []
    for i, text in enumerate(texts):
        if all(jaccard(text, texts[j]) < limit for j in kept):
            kept.append(i)
    return kept


def kept_by(duplicates, texts):
    return np.flatnonzero(duplicates.admit(texts)).tolist()


@pytest.mark.parametrize(("limit", "seed"), [(0.5, 0), (0.7, 1), (0.8, 0), (0.9, 1)])
def test_near_agrees_with_greedy_on_true_jaccard_where_similarities_lie_apart(limit, seed):
    rng = random.Random(seed)
    texts = []
    for _ in range(25):
        origin = " ".join(words(rng, 200))
        # Four standard errors of the estimate and more away from the limit.
        near = [like(rng, origin, 0.5 + limit / 2 + 0.04) for _ in range(2)]
        texts += [origin, *near, like(rng, origin, limit - 0.25), origin]
    rng.shuffle(texts)
    kept = greedy(texts, limit)
    assert 25 <= len(kept) < len(texts)
    assert kept_by(NearDuplicates("near", limit, seed=seed, num_perm=512), texts) == kept


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["exact", "near"]))
def test_rows_fed_in_many_calls_are_decided_as_in_one(seed, kind):
    rng = random.Random(seed)
    pool = [" ".join(words(rng, 12)) for _ in range(20)]
    texts = [like(rng, rng.choice(pool), rng.choice([0.5, 0.8, 0.9, 1.0])) for _ in range(90)]
    whole = NearDuplicates(kind)
    kept = kept_by(whole, texts)
    bits, found, start = NearDuplicates(kind), [], 0
    while start < len(texts):
        size = rng.randint(0, 30)
        part = bits.admit(texts[start : start + size])
        found += (np.flatnonzero(part) + start).tolist()
        start += size
    assert found == kept


@pytest.mark.parametrize("limit", [0.05, 0.3, 0.5, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("num_perm", [24, 128])
def test_the_index_never_changes_what_comparing_all_signatures_gives(limit, num_perm):
    rng = random.Random(num_perm)
    pool = [" ".join(words(rng, 40)) for _ in range(5)]
    texts = [like(rng, rng.choice(pool), rng.uniform(limit - 0.2, 1)) for _ in range(150)]
    sketches = RMinHash.from_token_sets([shingles(normalised(text)) for text in texts], num_perm, 9)
    kept: list[int] = []
    for i, sketch in enumerate(sketches):
        if all(sketch.jaccard(sketches[j]) < limit for j in kept):
            kept.append(i)
    assert kept_by(NearDuplicates("near", limit, num_perm=num_perm, seed=9), texts) == kept


def test_more_rows_than_a_batch_are_all_compared():
    rng = random.Random(3)
    texts = [" ".join(words(rng, 30)) for _ in range(700)]
    assert kept_by(NearDuplicates("near"), [*texts, *reversed(texts)]) == list(range(700))
    assert kept_by(NearDuplicates("exact"), [*texts, *reversed(texts)]) == list(range(700))


def test_a_row_left_out_shields_none():
    # b is like a and c is like b, but c is not like a: c stays, as b, which it is like, is not there.
    rng = random.Random(0)
    own = words(rng, 300)
    a, b, c = (" ".join(own[start : start + 200]) for start in (0, 20, 40))
    assert jaccard(a, b) > 0.8 > 0.7 > jaccard(a, c)
    duplicates = NearDuplicates("near", 0.76, num_perm=1024)
    assert duplicates.admit([a, b, c]).tolist() == [True, False, True]
    assert duplicates.admit([b]).tolist() == [False]


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_case_white_space_and_unicode_form_do_not_tell_texts_apart(kind):
    texts = [
        "Die Straße nach Größenwahn führt  bergauf",
        "die strasse NACH GRO\u0308SSENWAHN\n\tführt bergauf ",
        "Die Strasse nach Größenwahn fuhrt bergauf",
        "\uff24ie Straße nach Größenwahn führt\u3000bergauf",
    ]
    assert kept_by(NearDuplicates(kind, 0.95), texts) == [0, 2]


def test_exact_tells_punctuation_and_order_apart_and_near_does_not_see_punctuation():
    texts = ["One two, three four.", "one two three four", "four three two one"]
    assert kept_by(NearDuplicates("exact"), texts) == [0, 1, 2]
    assert kept_by(NearDuplicates("near"), texts) == [0, 2]


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_texts_too_short_for_a_shingle_are_duplicates_where_they_are_equal(kind):
    texts = ["", "yes", "Yes", "no", "  ", "yes no", "no yes", "yes  no", "?!", "!?", "?!", "...", "\U0001f600"]
    assert kept_by(NearDuplicates(kind), texts) == [0, 1, 3, 5, 6, 8, 9, 11, 12]


def test_scripts_without_spaces_are_compared_by_character():
    first = "机器学习是人工智能的一个分支它使用数据和算法来模仿人类学习的方式并逐步提高准确性"
    other = "长江是亚洲最长的河流发源于青藏高原流经十一个省份最后在上海附近注入东海全长六千公里"
    assert jaccard(first, first[:-1]) > 0.9
    assert kept_by(NearDuplicates("near"), [first, first[:-1], other]) == [0, 2]
    assert shingles("日本 go語 x_1") == ["日 本 go", "本 go 語", "go 語 x_1"]


def test_the_seed_decides_the_signatures_and_nothing_else_does():
    rng = random.Random(1)
    texts = [like(rng, " ".join(words(rng, 60)), 0.9) for _ in range(5)]
    borderline = [like(rng, text, 0.8) for text in texts for _ in range(20)]
    runs = [kept_by(NearDuplicates("near", seed=seed), [*texts, *borderline]) for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert len({*map(tuple, runs)}) > 1


def test_the_estimate_at_similarity_one_keeps_all_but_equal_sets():
    base = "a b c d e f g h"
    assert kept_by(NearDuplicates("near", 1.0), [base, base + " i", base, base + " h"]) == [0, 1, 3]


@pytest.mark.parametrize("similarity", [0.0, -0.5, 1.01, float("nan")])
def test_a_similarity_that_is_none_is_refused(similarity):
    with pytest.raises(ValueError, match="similarity must be above 0"):
        NearDuplicates("near", similarity)


def test_row_texts_hold_tool_calls_and_reasoning():
    said = [{"role": "assistant", "content": None, "tool_calls": "f(1)"}, {"role": "tool", "content": "7"}]
    rows = {"prompt": [[], []], "chosen": [said, said[1:]], "rejected": [said[1:], [{**said[1], "thinking": "Hm"}]]}
    fields = messages_type(("tool_calls", "thinking"))
    table = pa.table({name: pa.array(values, fields) for name, values in rows.items()})
    assert row_texts(table) == ["\n\nf(1)\n7\n7", "\n7\n7\nHm"]


def test_row_texts_hold_every_turn_in_order():
    def turns(*texts):
        return [{"role": "user", "content": text} for text in texts]

    rows = {
        "prompt": [turns("a", "b"), turns("p"), None, turns("x")],
        "chosen": [turns("c"), turns("q"), [], turns(None)],
        "rejected": [turns("d", "é"), turns("r"), turns("s"), turns("y")],
    }
    table = pa.table({name: pa.array(values, MESSAGES) for name, values in rows.items()})
    wanted = ["a\nb\nc\nd\né", "p\nq\nr", "\n\ns", "x\n\ny"]
    assert row_texts(table) == wanted
    assert row_texts(table.to_batches()[0].slice(1)) == wanted[1:]
    assert row_texts(pa.concat_tables([table.slice(2), table.slice(0, 2)])) == [*wanted[2:], *wanted[:2]]
    with pytest.raises(SchemaError, match="rejected"):
        row_texts(table.select(["prompt", "chosen"]))
