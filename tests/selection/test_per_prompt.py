"""At most n rows of a prompt: which ones stay agrees with sorting a dictionary, in any order."""

import hashlib
import math
import random

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schema import MESSAGES, messages_type
from pipeline.selection.per_prompt import beyond_cap, prompt_keys

TEXTS = st.none() | st.sampled_from(["", "a", "1:a", ":", "-", "é", "user"]) | st.text(max_size=4)
PROMPTS = st.lists(
    st.lists(st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}), max_size=3), min_size=1, max_size=30
)
ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([-1.5, -0.0, 0.0, 2.0, math.nan])), min_size=1, max_size=60
)


def beyond(rows, ids, n):
    """Places that `beyond_cap` leaves out, of rows (prompt, score)."""
    digests = [hashlib.blake2b(str(prompt).encode(), digest_size=16).digest() for prompt, _ in rows]
    keys = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
    scores = np.array([score for _, score in rows], dtype=np.float64)

    def ids_at(places):
        assert (np.diff(places) > 0).all()
        return pa.array(ids, pa.string()).take(pa.array(places))

    return beyond_cap(keys, scores, n, ids_at).tolist()


def plainly_beyond(rows, ids, n):
    by_prompt = {}
    for place, ((prompt, score), id_) in enumerate(zip(rows, ids, strict=True)):
        if not math.isnan(score):
            by_prompt.setdefault(prompt, []).append((-score, id_.encode(), place))
    return sorted(place for group in by_prompt.values() for _, _, place in sorted(group)[n:])


@given(
    rows=ROWS,
    n=st.integers(1, 4),
    names=st.lists(st.text(max_size=4), min_size=60, max_size=60, unique=True),
)
def test_rows_beyond_the_cap_agree_with_a_sorted_dictionary(rows, n, names):
    ids = names[: len(rows)]
    assert beyond(rows, ids, n) == plainly_beyond(rows, ids, n)


def test_many_tied_rows_agree_with_a_sorted_dictionary():
    rng = random.Random(5)
    rows = [(rng.randrange(700), float(rng.randrange(3))) for _ in range(5000)]
    ids = [f"id-{rng.random()}" for _ in rows]
    assert beyond(rows, ids, 2) == plainly_beyond(rows, ids, 2)


def test_ties_go_by_the_bytes_of_the_id():
    # In UTF-16 order, which some sort by, U+10000 would come before U+FF00.
    ids = ["a" * 39 + "b", "a" * 40, "\uff00", "\U00010000", "b"]
    assert beyond([("p", 1.0)] * 5, ids, 4) == [3]
    assert beyond([("p", 1.0)] * 5, ids, 1) == [0, 2, 3, 4]


def test_ids_are_asked_for_where_a_tie_is_cut_and_for_no_other_row():
    asked = []

    def ids_at(places):
        asked.append(places.tolist())
        return pa.array([f"id{place}" for place in places])

    keys = np.zeros((6, 2), dtype=np.uint64)
    keys[4:] = 1
    scores = np.array([2.0, 1.0, 1.0, 0.0, 5.0, 5.0])
    assert beyond_cap(keys, scores, 2, ids_at).tolist() == [2, 3]
    assert asked == [[1, 2]]
    assert beyond_cap(keys, scores, 3, ids_at).tolist() == [3]
    assert len(asked) == 1


def test_no_rows_leave_none_out():
    assert beyond([], [], 1) == []
    assert beyond([("p", math.nan)] * 3, ["a", "b", "c"], 1) == []


@given(prompts=PROMPTS, start=st.integers(0, 5))
def test_keys_are_equal_for_equal_prompts_and_no_others(prompts, start):
    keys = [tuple(key) for key in prompt_keys(pa.array(prompts, MESSAGES)).tolist()]
    told_apart = [tuple((turn["role"], turn["content"]) for turn in prompt) for prompt in prompts]
    assert len({*zip(keys, told_apart, strict=True)}) == len({*keys}) == len({*told_apart})
    sliced = prompt_keys(pa.array(prompts, MESSAGES).slice(start))
    assert [tuple(key) for key in sliced.tolist()] == keys[start:]


def test_text_cannot_pass_for_the_border_of_a_field_or_a_turn():
    def turns(*pairs):
        return [{"role": role, "content": content} for role, content in pairs]

    prompts = [
        turns(("user", "a"), ("user", "b")),
        turns(("user", "a4:user:1:b")),
        turns(("usera", ""), ("user", "b")),
        turns(("user", "ab")),
        turns(("user", "a"), ("user", ""), ("user", "b")),
        turns(("", "usera"), ("user", "b")),
    ]
    keys = prompt_keys(pa.array(prompts, MESSAGES))
    assert (keys.shape, keys.dtype) == ((6, 2), np.uint64)
    assert len({tuple(key) for key in keys.tolist()}) == 6


def test_prompts_with_other_tool_calls_have_other_keys():
    turns = [{"role": "assistant", "tool_calls": text} for text in ("f(1)", "f(2)", "f(1)")]
    one, two, three = prompt_keys(pa.array([[turn] for turn in turns], messages_type(("tool_calls",)))).tolist()
    assert one == three
    assert one != two


def test_keys_of_null_and_of_large_lists():
    prompts = [[{"role": "user", "content": "a"}], None, []]
    keys = prompt_keys(pa.array(prompts, MESSAGES)).tolist()
    assert keys[1] == keys[2] != keys[0]
    assert prompt_keys(pa.array(prompts, pa.large_list(MESSAGES.value_type))).tolist() == keys
    assert prompt_keys(pa.array([], MESSAGES)).shape == (0, 2)


def test_keys_are_the_same_on_every_machine():
    prompts = pa.array([[{"role": "user", "content": "Grüße"}]], MESSAGES)
    digest = hashlib.blake2b("4:user:7:Grüße".encode(), digest_size=16).digest()
    assert prompt_keys(prompts).astype("<u8").tobytes() == digest
