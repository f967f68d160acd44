"""Which new prompts are kept, why the others are not, and that no order decides."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Evolve
from pipeline.errors import DataError
from pipeline.selfplay.filters import drop_repeated, filter_prompts, why_unfit
from pipeline.selfplay.language import latin_language_of, same_language, script_of
from pipeline.sources.contamination import Contamination
from tests.selfplay.prompt_tables import dropped_reasons, kept_ids, prompt_row, prompts, user
from tests.sources import layouts as to

PARENT = "How do I get a coffee stain out of a white cotton shirt?"
GOOD = "Which household acids remove tannin stains from bleached cotton, and why would vinegar work less well on silk?"
ENGLISH = "What are the differences between the two proposals, and which of them should the city choose?"
GERMAN = "Was sind die Unterschiede zwischen den Vorschlägen, und welchen soll die Stadt für sich wählen, ist das klar?"
FRENCH = "Quelles sont les différences entre les deux projets, et que doit choisir la ville pour une bonne raison?"
RUSSIAN = "Чем отличаются эти два предложения и какое из них должен выбрать город?"
JAPANESE = "この二つの提案の違いは何ですか。市はどちらを選ぶべきですか。"
CHINESE = "这两个提案有什么不同之处,城市应该选择哪一个方案?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, None),
        ("  ", "empty_prompt"),
        ("?!", "empty_prompt"),
        ("Why?", "length_ratio"),
        (f"{GOOD} " * 3, "length_ratio"),
        ("I'm sorry, but I can't help with rewriting that.", "refusal"),
        ("I\u2019m sorry, but I can\u2019t help with rewriting that.", "refusal"),
        ("As an AI language model, I have no shirts to wash.", "refusal"),
        ("I cannot assist with this, whatever the stain may be.", "refusal"),
        ("I can't open the lid of my washing machine, what do I do?", None),
        ("Write to a guest: I'm sorry, but I spilt coffee on your shirt.", None),
        ("The rewritten prompt asks about stains on silk instead.", "meta_phrase"),
        ("#Rewritten Prompt# Which acids remove tannin stains?", "meta_phrase"),
        ("Here is the given request with more about silk shirts in it.", "meta_phrase"),
        ("I'm here and ready to help with stains of any kind.", "meta_phrase"),
        ("The answer to the request must be concise.", "meta_phrase"),
        (RUSSIAN, "other_language"),
        (GERMAN, "other_language"),
        ("how do I get a coffee stain OUT of a white cotton shirt", "repeats_parent"),
    ],
)
def test_a_prompt_is_kept_or_dropped_for_a_reason(text, expected):
    assert why_unfit(text, PARENT, Evolve()) == expected


def test_meta_phrases_of_the_parent_are_its_subject():
    parent = "How does the original prompt of a model differ from a system message in practice?"
    assert why_unfit("When does the original prompt outweigh a system message, and why?", parent, Evolve()) is None


def test_length_ratio_counts_characters_both_ways_and_is_inclusive():
    config = Evolve(max_length_ratio=2.0)
    parent, twice = "abcd efgh!", "some other words, yes"[:20]
    assert why_unfit(twice, parent, config) is None
    assert why_unfit(parent, twice, config) is None
    assert why_unfit(twice + "?", parent, config) == "length_ratio"
    assert why_unfit(parent, twice + "?", config) == "length_ratio"


@pytest.mark.parametrize(
    ("text", "script"),
    [(ENGLISH, "LATIN"), (RUSSIAN, "CYRILLIC"), (JAPANESE, "KANA"), (CHINESE, "CJK"), ("Hi 5", None), ("", None)],
)
def test_script_is_that_of_most_letters(text, script):
    assert script_of(text) == script


def test_languages_are_told_apart_only_where_they_can_be():
    languages = [latin_language_of(text) for text in (ENGLISH, GERMAN, FRENCH)]
    assert languages == ["english", "german", "french"]
    texts = (ENGLISH, GERMAN, FRENCH, RUSSIAN, JAPANESE, CHINESE)
    assert all(same_language(one, other) == (one == other) for one in texts for other in texts)
    assert same_language("def f(x): return x + 1", ENGLISH)
    assert same_language("Ja?", RUSSIAN)


def test_reasons_end_up_in_the_table_and_row_counts_stay():
    parents = prompts(("p", PARENT))
    new = prompts(
        prompt_row("good", GOOD, parent_id="p"),
        prompt_row("silent", "...", parent_id="p"),
        prompt_row(
            "bench", "Please tell me: what walks on four legs in the morning, and on two at noon?", parent_id="p"
        ),
        prompt_row("seed", "Name five rivers of Europe that flow into the Black Sea today.", parent_id="p"),
        prompt_row("gone", None, parent_id="p", status="dropped", drop_stage="evolve", drop_reason="request_too_long"),
    )
    given_ones = prompts(("q", "name five rivers of Europe that flow into the Black Sea, today"))
    benchmarks = Contamination.of_texts(["What walks on four legs in the morning?"], 8)
    done = filter_prompts(new, parents, [parents, given_ones], Evolve(), benchmarks)
    assert done.schema == new.schema
    assert done.column("id") == new.column("id")
    assert kept_ids(done) == ["good"]
    assert dropped_reasons(done) == {
        "silent": "empty_prompt",
        "bench": "contaminated",
        "seed": "near_duplicate",
        "gone": "request_too_long",
    }
    stages = {row["id"]: row["drop_stage"] for row in done.to_pylist()}
    assert stages == {"good": None, "silent": "filter", "bench": "filter", "seed": "filter", "gone": "evolve"}


def test_only_the_last_turn_is_compared():
    parents = prompts(prompt_row("p", to.LONG_PAIR["prompt"]))
    said = [*to.LONG_PAIR["prompt"][:-1], *user("Which of its tributaries carries the most water?")]
    new = prompts(prompt_row("a", said, parent_id="p"))
    assert kept_ids(filter_prompts(new, parents, [parents], Evolve())) == ["a"]


def test_a_missing_parent_is_an_error():
    with pytest.raises(DataError, match="'a' was made from 'p'"):
        filter_prompts(prompts(prompt_row("a", GOOD, parent_id="p")), prompts(("q", PARENT)), [], Evolve())


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=25), st.integers(0, 2**32))
def test_of_new_prompts_alike_the_first_by_id_is_kept_in_any_order(kinds, seed):
    words = [" ".join(random.Random(kind).choices("abcdefghijklmnopqrstuvwxyz", k=40)) for kind in range(10)]
    rows = [prompt_row(f"{i:03}", f"{words[kind]} and {i % 2}") for i, kind in enumerate(kinds)]
    rng = random.Random(seed)
    done = drop_repeated(prompts(*rng.sample(rows, len(rows))), [prompts(("given", words[0]))], 0.8)
    first = {kind: f"{i:03}" for i, kind in reversed([*enumerate(kinds)]) if kind != 0}
    assert sorted(kept_ids(done)) == sorted(first.values())
    assert set(dropped_reasons(done).values()) <= {"near_duplicate"}
    assert len(kept_ids(done)) + len(dropped_reasons(done)) == len(rows)
