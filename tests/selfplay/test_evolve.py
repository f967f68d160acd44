"""Prompts made of prompts: which tasks there are, what is asked, and what becomes of the answers."""

import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.selfplay
from pipeline import schema as s
from pipeline.config import STRATEGIES, Evolve, Pairing
from pipeline.errors import DataError, IntegrityError
from pipeline.selfplay.evolve import (
    cleaned,
    evolve,
    plan_evolution,
    request_for,
    selected_prompts,
    template_fingerprint,
    template_of,
)
from pipeline.selfplay.pairing import make_pairs
from pipeline.selfplay.sampler import Response
from tests.selfplay.prompt_tables import annotated, annotated_row, dropped_reasons, prompt_row, prompts, user
from tests.sources import layouts as to

SEEDS = prompts(("p1", "Name a river."), ("p2", "Name a lake."))


def saying(text, finish_reason="stop"):
    return Response(text=text, num_tokens=5, finish_reason=finish_reason)


class Recorder:
    """Answers every request with its number, and keeps what it was asked."""

    def __init__(self, answer=lambda number: saying(f"New prompt number {number}")):
        self.requests, self.seeds, self._answer = [], [], answer

    def __call__(self, requests, seeds):
        self.requests += requests
        self.seeds += seeds
        return [self._answer(number) for number in range(len(requests))]


def evolved(text, prompt="Name a river.", finish_reason="stop"):
    tasks = plan_evolution(prompts(("p", prompt)), Evolve(strategies=("deepen",)), round_=1)
    return evolve(tasks, Recorder(lambda _: saying(text, finish_reason)), Evolve()).to_pylist()[0]


def test_each_prompt_is_rewritten_by_each_strategy():
    ask = Recorder()
    new = evolve(plan_evolution(SEEDS, Evolve(), round_=3), ask, Evolve()).to_pylist()
    assert [(row["parent_id"], row["strategy"]) for row in new] == [
        (parent, name) for parent in ("p1", "p2") for name in sorted(STRATEGIES)
    ]
    assert {row["round"] for row in new} == {3}
    assert [row["prompt"] for row in new] == [user(f"New prompt number {i}") for i in range(10)]
    assert len({row["id"] for row in new}) == len(set(ask.seeds)) == 10


def test_requests_hold_the_prompt_and_differ_by_strategy():
    asked = [request_for(user("Name {a} river."), name)[0]["content"] for name in STRATEGIES]
    assert len(set(asked)) == len(STRATEGIES)
    assert all("Name {a} river." in text and "{context}" not in text and "{prompt}" not in text for text in asked)


def test_fewer_strategies_are_picked_by_a_hash_that_reads_no_order():
    config = Evolve(per_prompt=2, seed=5)
    many = prompts(*((f"p{i}", f"Question {i}?") for i in range(40)))
    tasks = plan_evolution(many, config, round_=1)
    picked = {}
    for row in tasks.to_pylist():
        picked.setdefault(row["parent_id"], []).append(row["strategy"])
    assert {len(names) for names in picked.values()} == {2}
    assert {name for names in picked.values() for name in names} == set(STRATEGIES)
    turned = Evolve(strategies=STRATEGIES[::-1], per_prompt=2, seed=5)
    assert plan_evolution(many, turned, round_=1) == tasks
    assert plan_evolution(many, Evolve(per_prompt=2, seed=6), round_=1) != tasks


def test_shards_give_what_the_whole_gives_but_for_the_answers():
    tasks = plan_evolution(SEEDS, Evolve(), round_=1)
    whole, parts = Recorder(), Recorder()
    evolve(tasks, whole, Evolve())
    for start in range(0, tasks.num_rows, 3):
        evolve(tasks.slice(start, 3), parts, Evolve())
    assert (whole.requests, whole.seeds) == (parts.requests, parts.seeds)


def test_id_is_that_of_parent_strategy_and_text():
    first, again, other = evolved("A?"), evolved("A?"), evolved("B?")
    assert first["id"] == again["id"] != other["id"]
    canonical = '["p","deepen","A?"]'
    assert first["id"] == hashlib.sha256(canonical.encode()).hexdigest()[:32]


def test_system_turn_and_earlier_turns_are_kept_and_told():
    ask = Recorder()
    tasks = plan_evolution(prompts(prompt_row("p", to.LONG_PAIR["prompt"])), Evolve(strategies=("breadth",)), round_=1)
    (new,) = evolve(tasks, ask, Evolve()).to_pylist()
    assert new["prompt"] == [*to.LONG_PAIR["prompt"][:-1], *user("New prompt number 0")]
    request = ask.requests[0][0]["content"]
    assert "User: Name a river.\n\nAssistant: The Elbe.\n\nRequest:\nAnd a longer one?" in request
    assert "Answer in one line." not in request


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        ("  Name a long river. \n", "Name a long river."),
        ('"Name a long river."', "Name a long river."),
        ("\u201cName a long river.\u201d", "Name a long river."),
        ("#Rewritten Prompt#: Name a long river.", "Name a long river."),
        ("#Rewritten Prompt#:\nName a long river.", "Name a long river."),
        ("**New request:** Name a long river.", "Name a long river."),
        ("### New Request:\n\nName a long river.", "Name a long river."),
        ('Here is the rewritten request:\n\n"Name a long river."', "Name a long river."),
        ("Sure! Here's a new question: Name a long river.", "Name a long river."),
        ("```\nName a long river.\n```", "Name a long river."),
        ("```text\nRequest: Name a long river.\n```", "Name a long river."),
        ('"Rhine" or "Elbe"', '"Rhine" or "Elbe"'),
        ("Fix this:\n```python\nx = 1\n```", "Fix this:\n```python\nx = 1\n```"),
        ("Prompt engineers: what do they do?", "Prompt engineers: what do they do?"),
        ("Compare two cases: a and b.", "Compare two cases: a and b."),
    ],
)
def test_answers_are_cleaned_of_what_models_put_around_them(said, prompt):
    assert cleaned(said) == prompt


@given(st.text(alphabet='ab "`#*:\n\u201c\u201dRequestPromptnew', max_size=60))
def test_cleaning_twice_changes_nothing_and_invents_nothing(text):
    once = cleaned(text)
    assert cleaned(once) == once
    assert once in text


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [("A?", "length", "unfinished_response"), (" \n", "stop", "empty_prompt"), ('""', "stop", "empty_prompt")],
)
def test_answers_of_no_use_drop_the_row(text, finish_reason, expected):
    row = evolved(text, finish_reason=finish_reason)
    assert (row["status"], row["drop_stage"], row["drop_reason"]) == ("dropped", "evolve", expected)
    assert row["num_tokens_draft"] == saying(text, finish_reason).num_tokens > 0


def test_rows_are_one_for_one_whatever_becomes_of_them():
    tool = [*user("Look."), to.turn("assistant", "x"), to.turn("tool", "42")]
    given_rows = prompts(("p1", "Name a river."), prompt_row("p2", tool), prompt_row("p3", "x", status="dropped"))
    tasks = plan_evolution(given_rows, Evolve(strategies=("deepen", "breadth")), round_=1)
    assert tasks.num_rows == 4
    answers = iter([saying("A?"), None])
    new = evolve(tasks, lambda requests, _: [next(answers) for _ in requests], Evolve())
    assert new.schema == s.DRAFT_SCHEMA
    assert new.column(s.NUM_TOKENS_DRAFT).to_pylist().count(None) == 3
    assert sorted(dropped_reasons(new).values()) == ["no_last_user_turn", "no_last_user_turn", "request_too_long"]
    assert evolve(new, Recorder(), Evolve()).column("drop_reason") == new.column("drop_reason")


def test_a_wrong_number_of_answers_is_an_error():
    with pytest.raises(IntegrityError, match="10 prompts"):
        evolve(plan_evolution(SEEDS, Evolve(), round_=1), lambda *_: [], Evolve())


def test_selected_prompts_stand_once_with_their_provenance():
    rows = [annotated_row(id_, [("a", 1.0), ("b", 0.0), ("c", 2.0), ("d", 3.0)], round=1) for id_ in ("q", "p")]
    pairs = make_pairs(annotated(*rows), Pairing(per_prompt=2))
    assert pairs.num_rows == 4
    found = selected_prompts(pairs).to_pylist()
    assert [(row["id"], row["round"], row["prompt"]) for row in found] == [
        ("p", 1, user("Question p?")),
        ("q", 1, user("Question q?")),
    ]
    other = make_pairs(annotated({**annotated_row("p", [("a", 1.0), ("b", 0.0)]), "prompt": user("x")}), Pairing())
    with pytest.raises(DataError, match="'p'"):
        selected_prompts(pa.concat_tables([pairs, other]))


def test_templates_are_versioned_and_named_in_fingerprints():
    folder = Path(pipeline.selfplay.__file__).parent / "templates"
    assert {path.stem for path in folder.iterdir()} == set(STRATEGIES)
    fingerprint = template_fingerprint(STRATEGIES)
    for name in STRATEGIES:
        whole = (folder / f"{name}.txt").read_bytes()
        assert fingerprint[name]["digest"] == hashlib.sha256(whole).hexdigest()[:32]
        assert fingerprint[name]["version"] == int(re.match(rb"version: (\d+)", whole)[1])
        assert "version" not in template_of(name).text
