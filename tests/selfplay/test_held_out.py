"""Held-out prompts: the same in any order, and nothing like them is trained on."""

import random

import pyarrow as pa
import pytest

from pipeline import schema as s
from pipeline.config import Evaluate
from pipeline.errors import ConfigError
from pipeline.selfplay.held_out import split_held_out
from pipeline.selfplay.seeds import by_hash

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def table_of(texts, system=None):
    """Prompts with the ids 00, 01 and so on."""
    before = [] if system is None else [{"role": "system", "content": system}]
    rows = [
        {s.ID: f"{i:02}", s.PROMPT: [*before, {"role": "user", "content": text}], s.STATUS: s.KEPT}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=s.PROMPT_SCHEMA)


def ids(table):
    return table.column(s.ID).to_pylist()


TWO = Evaluate(num_prompts=2)


def split_beside(text, others, **table):
    """The others that are kept and dropped, where `text` and a prompt unlike all of them are held out."""
    first = [int(id_) for id_ in by_hash([f"{i:02}" for i in range(len(others) + 2)], 0)[:2]]
    left = iter(others)
    said = dict(zip(first, (text, "Unlike any other"), strict=True))
    texts = [said.get(i) or next(left) for i in range(len(others) + 2)]
    train, held_out, dropped = split_held_out(table_of(texts, **table), TWO, seed=0)
    assert ids(held_out) == [f"{i:02}" for i in sorted(first)]
    return [texts[int(i)] for i in ids(train)], [texts[int(i)] for i in ids(dropped)]


def test_held_out_prompts_are_the_same_in_any_order_and_never_trained_on():
    unusable = {s.ID: "99", s.STATUS: s.DROPPED, s.DROP_STAGE: "read", s.DROP_REASON: "empty_prompt"}
    table = table_of([f"Question {i}?" for i in range(50)])
    table = pa.concat_tables([table, pa.Table.from_pylist([unusable], schema=s.PROMPT_SCHEMA)])
    train, held_out, dropped = split_held_out(table, Evaluate(num_prompts=8), seed=3)
    order = random.Random(0).sample(range(table.num_rows), table.num_rows)
    assert split_held_out(table.take(order), Evaluate(num_prompts=8), seed=3) == (train, held_out, dropped)
    assert sorted(ids(train) + ids(held_out)) == [f"{i:02}" for i in range(50)]
    assert (held_out.num_rows, dropped.num_rows) == (8, 0)
    assert split_held_out(table, Evaluate(num_prompts=8), seed=4)[1] != held_out


def test_a_lower_limit_holds_out_the_same_prompts():
    texts = [f"Question {i}?" for i in range(60)]
    first = set(by_hash([f"{i:02}" for i in range(60)], 5)[:20])
    every = table_of(texts)
    few = every.filter(pa.array([id_ in first for id_ in ids(every)]))
    assert split_held_out(few, Evaluate(num_prompts=9), 5)[1] == split_held_out(every, Evaluate(num_prompts=9), 5)[1]


def test_prompts_near_a_held_out_one_are_dropped_with_their_reason():
    others = ["write a poem ", "Write a poem!", "Write a song", "Write a poem about the sea"]
    kept, dropped = split_beside("Write a poem", others)
    assert (kept, dropped) == (others[2:], others[:2])
    table = table_of(["Write a poem", "write a poem ", "Write a song", "Name a river"])
    marked = next(m for seed in range(40) if (m := split_held_out(table, TWO, seed)[2]).num_rows)
    [row] = marked.to_pylist()
    assert (row[s.STATUS], row[s.DROP_STAGE], row[s.DROP_REASON]) == (s.DROPPED, "filter", "near_held_out")
    assert marked.schema == s.PROMPT_SCHEMA


def test_near_is_the_jaccard_similarity_of_word_3_grams():
    near, far = " ".join(WORDS[:-1]), " ".join(WORDS[:-2])  # 7 and 6 of 8 shingles
    assert split_beside(" ".join(WORDS), [near, far]) == ([far], [near])


def test_training_prompts_may_be_like_each_other():
    others = ["Write a poem", "write a poem", "Write a song."]
    assert split_beside("Name a river", others) == (others, [])


def test_a_held_out_prompt_shields_whatever_other_held_out_ones_are_like():
    """Two held-out prompts may be alike, and a third like only one of them."""
    texts = [" ".join(WORDS), " ".join(WORDS[:-1]), " ".join(WORDS[:-2]), "Name a river", "Name a lake"]
    for seed in range(40):
        train, held_out, _ = split_held_out(table_of(texts), TWO, seed)
        if ids(held_out) == ["00", "01"]:
            assert "02" not in ids(train)
            return
    pytest.fail("no seed holds out the first two")


def test_system_turns_make_no_prompts_alike():
    others = ["Name a lake", "name a river"]
    long = " ".join(WORDS * 5)
    assert split_beside("Name a river", others, system=long) == (others[:1], others[1:])


def test_nothing_left_to_train_on_is_refused():
    with pytest.raises(ConfigError, match="leaves none"):
        split_held_out(table_of(["a", "b", "c"]), Evaluate(num_prompts=3), seed=3)
    with pytest.raises(ConfigError, match="2 others are nearly the same"):
        split_held_out(table_of(["a b", "A b", "a  b", "a b."]), TWO, seed=3)
