"""The cache of paid answers: what was answered once is found again by any process, and damage is never believed."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Storage
from pipeline.data.place import Place
from pipeline.errors import TemporaryError
from pipeline.rewards import cache as module
from pipeline.rewards.answers import Form, ask_rows
from pipeline.rewards.cache import Cache
from pipeline.rewards.http import Client, Failed, Service
from tests.fixtures_storage import S3Server
from tests.rewards.service import Asked, Reply, serving
from tests.rewards.service import Service as Served

SCOPE = {"kind": "vllm", "model": "rm", "version": None}


def place(folder: Path) -> Place:
    return Place.open(str(folder / "cache"), Storage())


def filled(at: Place | None, answers: dict[str, Any]) -> Cache:
    cache = Cache(at, SCOPE)
    for request, answer in answers.items():
        cache.put({"input": request}, answer)
    cache.flush()
    return cache


def held(cache: Cache, names: str) -> dict[str, Any]:
    return {name: cache.get({"input": name}) for name in names}


def test_answers_are_found_again_by_their_whole_request_and_model(tmp_path: Path) -> None:
    answers = {"a": 1.5, "b": -2.25e-7, "c": {"text": "[[A]]", "logprobs": [-0.1, -2.4]}, "d": 0.0}
    assert held(filled(place(tmp_path), answers), "abcde") == {**answers, "e": None}
    filled(place(tmp_path), {"e": 5.0})
    again = Cache(place(tmp_path), dict(reversed(SCOPE.items())))
    assert held(again, "abcdef") == {**answers, "e": 5.0, "f": None}
    assert again.get({"input": "a", "temperature": 0}) is None
    assert held(Cache(place(tmp_path), {**SCOPE, "version": "2"}), "ab") == {"a": None, "b": None}
    assert held(filled(None, answers), "ab") == {"a": None, "b": None}


@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: d[:60] + bytes([d[60] ^ 1]) + d[61:], lambda d: b""])
def test_a_torn_or_changed_segment_is_left_out_and_told(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(place(tmp_path), {"a": 1.0, "b": 2.0})
    [segment] = (tmp_path / "cache").rglob("*.parquet")
    segment.write_bytes(damage(segment.read_bytes()))
    filled(place(tmp_path), {"c": 3.0})
    assert held(Cache(place(tmp_path), SCOPE), "abc") == {"a": None, "b": None, "c": 3.0}
    assert "is damaged, and left out" in caplog.text


def test_two_that_write_the_same_answers_agree_whatever_the_order(tmp_path: Path) -> None:
    for name, answers in (("one", (1.0, 1.25)), ("two", (1.25, 1.0))):
        for answer in answers:
            filled(place(tmp_path / name), {"a": answer, "b": 2.0})
    found = [held(Cache(place(tmp_path / name), SCOPE), "ab") for name in ("one", "two")]
    assert found[0] == found[1]
    assert found[0]["b"] == 2.0


def test_answers_do_not_wait_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLUSH_S", 0.0)
    Cache(place(tmp_path), SCOPE).put({"input": "a"}, 1.0)
    assert held(Cache(place(tmp_path), SCOPE), "a") == {"a": 1.0}


@pytest.mark.s3
def test_answers_lie_on_s3(s3: S3Server) -> None:
    at = Place.open(s3.url("cache"), s3.storage)
    assert held(Cache(at, SCOPE), "a") == {"a": None}
    filled(at, {"a": 1.0})
    filled(at, {"b": 2.0})
    assert held(Cache(at, SCOPE), "ab") == {"a": 1.0, "b": 2.0}


LENGTHS: Form[str] = Form(
    path="/lengths",
    body_of=lambda rows: {"texts": list(rows)},
    read=lambda answer: answer["lengths"],
    batch_rows=4,
)
ROWS = [("x" * (n % 7)) + str(n) for n in range(30)]


def asked_of(url: str, cache: Cache, rows: list[str] = ROWS, **keys: Any) -> list[Any]:
    client = Client(Service(section="reward", urls=[url], **keys))
    try:
        return ask_rows(client, cache, LENGTHS, rows)
    finally:
        client.close()


def lengths(asked: Asked) -> Reply:
    return Reply({"lengths": [len(text) for text in asked.body["texts"]]})


def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    with serving(Served(lengths)) as service:
        assert asked_of(service.url, Cache(place(tmp_path), SCOPE), ROWS[:20]) == [len(row) for row in ROWS[:20]]
        again = [*ROWS[10:], ROWS[0]]
        assert asked_of(service.url, Cache(place(tmp_path), SCOPE), again) == [len(row) for row in again]
        paid = [text for asked in service.asked for text in asked.body["texts"]]
    assert sorted(paid) == sorted(ROWS)


def test_a_row_that_poisons_its_request_fails_alone(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(status=400) if {ROWS[5], ROWS[17]} & {*asked.body["texts"]} else lengths(asked)

    with serving(Served(answer)) as service:
        found = asked_of(service.url, Cache(place(tmp_path), SCOPE))
        assert [n for n, each in enumerate(found) if isinstance(each, Failed)] == [5, 17]
        assert [each for n, each in enumerate(found) if n not in (5, 17)] == [
            len(row) for n, row in enumerate(ROWS) if n not in (5, 17)
        ]
        answered = [*service.asked]
        asked_of(service.url, Cache(place(tmp_path), SCOPE))
        more = [text for asked in service.asked[len(answered) :] for text in asked.body["texts"]]
    assert {*more} == {ROWS[5], ROWS[17]}


def test_wrong_counts_are_asked_for_again_and_what_has_no_answer_twice_has_none(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Reply:
        found = [None if text == ROWS[3] else len(text) for text in asked.body["texts"]]
        if asked.number == 0:
            return Reply({"lengths": found[1:]})
        if asked.number == 1:
            return Reply({"lengths": [None] * len(found)})
        return Reply({"lengths": found})

    with serving(Served(answer)) as service:
        found = asked_of(service.url, Cache(place(tmp_path), SCOPE), ROWS[:8], concurrency=1)
        assert sum(asked.body["texts"] == [ROWS[3]] for asked in service.asked) == 1
    assert found == [None if n == 3 else len(row) for n, row in enumerate(ROWS[:8])]


def test_what_was_paid_before_the_end_is_not_paid_again(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(status=503) if asked.number >= 3 else lengths(asked)

    with serving(Served(answer)) as service:
        with pytest.raises(TemporaryError):
            asked_of(service.url, Cache(place(tmp_path), SCOPE), concurrency=1, deadline_s=1.0)
        first = [text for asked in service.asked[:3] for text in asked.body["texts"]]
        before = len(service.asked)
        service.answer = lengths
        assert asked_of(service.url, Cache(place(tmp_path), SCOPE)) == [len(row) for row in ROWS]
        second = [text for asked in service.asked[before:] for text in asked.body["texts"]]
    assert sorted(first + second) == sorted(ROWS)
