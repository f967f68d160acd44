"""At most n rows of a prompt: which ones stay agrees with sorting a dictionary, whatever the order and the cut."""

import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, IntegrityError
from pipeline.schema import MESSAGES
from pipeline.selection.per_prompt import PromptRows, beyond_cap, prompt_keys

TEXTS = st.none() | st.sampled_from(["", "a", "1:a", ":", "-", "é", "user"]) | st.text(max_size=4)
PROMPTS = st.lists(
    st.lists(st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}), max_size=3), min_size=1, max_size=30
)
ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([-1.5, -0.0, 0.0, 2.0, float("inf")])), min_size=1, max_size=60
)


def keys_of(prompts):
    numbers = [hashlib.blake2b(str(prompt).encode(), digest_size=16).digest() for prompt in prompts]
    return np.frombuffer(b"".join(numbers), dtype="<u8").reshape(-1, 2)


def prompt_rows(rows, ids, positions):
    return PromptRows(
        keys=keys_of([prompt for prompt, _ in rows]),
        scores=np.array([score for _, score in rows], dtype=np.float64),
        ids=pa.array(ids, pa.string()),
        positions=np.array(positions, dtype=np.int64),
    )


def plainly_beyond(rows, ids, n):
    by_prompt = {}
    for position, ((prompt, score), id_) in enumerate(zip(rows, ids, strict=True)):
        by_prompt.setdefault(prompt, []).append((-score, id_.encode(), position))
    return sorted(position for group in by_prompt.values() for _, _, position in sorted(group)[n:])


@settings(deadline=None)
@given(
    rows=ROWS,
    n=st.integers(1, 4),
    bucket_rows=st.integers(1, 70),
    rng=st.randoms(use_true_random=False),
    names=st.lists(st.text(max_size=4), min_size=60, max_size=60, unique=True),
)
def test_rows_beyond_the_cap_agree_with_a_sorted_dictionary_in_any_order_and_cut(rows, n, bucket_rows, rng, names):
    ids = names[: len(rows)]
    order = list(range(len(rows)))
    rng.shuffle(order)
    size = rng.randint(1, len(rows))
    parts = [order[start : start + size] for start in range(0, len(rows), size)]
    given_rows = [prompt_rows([rows[i] for i in part], [ids[i] for i in part], part) for part in parts]
    found = beyond_cap(given_rows, n, len(rows), bucket_rows=bucket_rows)
    assert found.dtype == np.int64
    assert found.tolist() == plainly_beyond(rows, ids, n)


def test_ties_go_by_the_bytes_of_the_id():
    # In UTF-16 order, which some sort by, U+10000 would come before U+FF00.
    ids = ["b", "\U00010000", "\uff00", "a" * 40, "a" * 39 + "b"]
    found = beyond_cap([prompt_rows([("p", 1.0)] * 5, ids, [4, 3, 2, 1, 0])], 4, 5)
    assert found.tolist() == [3]
    assert beyond_cap([prompt_rows([("p", 1.0)] * 5, ids, [4, 3, 2, 1, 0])], 1, 5).tolist() == [0, 2, 3, 4]


def test_many_tied_rows_on_disk_agree_with_a_sorted_dictionary(tmp_path):
    rng = random.Random(5)
    rows = [(rng.randrange(700), float(rng.randrange(3))) for _ in range(5000)]
    ids = [f"id-{rng.random()}" for _ in rows]
    parts = (prompt_rows(rows[i : i + 90], ids[i : i + 90], range(i, min(i + 90, 5000))) for i in range(0, 5000, 90))
    found = beyond_cap(parts, 2, len(rows), bucket_rows=256, folder=tmp_path)
    assert found.tolist() == plainly_beyond(rows, ids, 2)
    assert [*tmp_path.iterdir()] == []


def test_slices_of_larger_arrays_are_taken_as_they_are():
    ids = pa.array(["x", "b", "a", "y"]).slice(1, 2)
    rows = prompt_rows([("p", 1.0), ("p", 1.0)], ["", ""], [0, 1])
    sliced = PromptRows(keys=rows.keys, scores=rows.scores, ids=ids, positions=rows.positions)
    assert beyond_cap([sliced], 1, 2).tolist() == [0]
    assert beyond_cap([sliced], 1, 2, bucket_rows=1).tolist() == [0]


def test_no_rows_leave_none_out():
    assert beyond_cap([], 1, 0).tolist() == []
    assert beyond_cap([prompt_rows([], [], [])], 1, 10**7).tolist() == []


def test_a_repeated_id_at_the_cut_is_refused():
    rows = [("p", 1.0), ("p", 1.0), ("p", 0.0)]
    with pytest.raises(IntegrityError, match="'same' stands in two rows"):
        beyond_cap([prompt_rows(rows, ["same", "same", "z"], [0, 1, 2])], 1, 3)
    assert beyond_cap([prompt_rows(rows, ["same", "same", "z"], [0, 1, 2])], 2, 3).tolist() == [2]


def test_a_row_without_a_score_is_refused():
    with pytest.raises(DataError, match="without a score"):
        beyond_cap([prompt_rows([("p", float("nan"))], ["a"], [0])], 1, 1)


@settings(deadline=None)
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
