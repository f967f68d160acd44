"""The client of HTTP services: each request is answered once whatever fails for now, and what cannot work ends soon."""

import email.utils
import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.errors import ConfigError, TemporaryError
from pipeline.rewards import http
from pipeline.rewards.http import BadAnswer, Client, Failed
from tests.rewards.service import Asked, Reply, Service, serving

KEY = "canary-key-4d1f"


def doubled(asked: Asked) -> Reply:
    return Reply({"double": 2 * asked.body["n"]})


def read(_: int, answer: Any) -> float:
    return answer["double"]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[int, Any]]]:
    """Asks services to double some numbers; the answers by number."""
    monkeypatch.setattr(http, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(http, "_LONGEST_PAUSE_S", 0.1)
    clients = []

    def call(urls: list[str], numbers: Any = range(40), **keys: Any) -> dict[int, Any]:
        client = Client(http.Service(section="reward", urls=urls, **keys))
        clients.append(client)
        return dict(client.ask("/double", [{"n": n} for n in numbers], read))

    yield call
    for client in clients:
        client.close()


EXPECTED = {n: 2 * n for n in range(40)}


def fails_at_first(reply: Reply) -> Callable[[Asked], Reply]:
    """Answers each second new request with `reply`, and well when it comes again."""
    seen: Counter[int] = Counter()

    def answer(asked: Asked) -> Reply:
        n = asked.body["n"]
        seen[n] += 1
        return reply if n % 2 and seen[n] == 1 else doubled(asked)

    return answer


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=500),
        Reply(status=503),
        Reply(status=429, headers={"Retry-After": "0"}),
        Reply({"double": 1}, is_cut=True),
        Reply({"double": 1}, headers={"Content-Length": "5"}),
        Reply(["another form"]),
        Reply({"double": 1}, stall_s=1.5),
    ],
    ids=["500", "503", "429", "cut off", "truncated JSON", "another form", "stalls"],
)
def test_what_fails_for_now_is_sent_again(reply: Reply, ask: Callable[..., Any]) -> None:
    with serving(Service(fails_at_first(reply))) as service:
        assert ask([service.url], timeout_s=0.5 if reply.stall_s else 60) == EXPECTED
        answered = Counter(asked.body["n"] for asked in service.asked)
    assert set(answered.values()) == {1, 2}
    assert [n for n, count in answered.items() if count == 2] == [n for n in answered if n % 2]


def test_a_fifth_of_503_loses_nothing(ask: Callable[..., Any]) -> None:
    chance = random.Random(0)
    with serving(Service(lambda asked: Reply(status=503) if chance.random() < 0.2 else doubled(asked))) as service:
        assert ask([service.url], range(300), tries=2) == {n: 2 * n for n in range(300)}


def test_no_more_are_in_flight_than_allowed(ask: Callable[..., Any]) -> None:
    with serving(Service(lambda asked: Reply(doubled(asked).body, stall_s=0.02))) as service:
        assert ask([service.url], concurrency=7) == EXPECTED
        assert service.most_at_once == 7


@pytest.mark.parametrize("as_date", [False, True])
def test_the_wait_that_a_service_asks_for_is_kept(as_date: bool, ask: Callable[..., Any]) -> None:
    times: list[float] = []

    def answer(asked: Asked) -> Reply:
        times.append(time.time())
        if len(times) > 1:
            return doubled(asked)
        wait = email.utils.formatdate(times[0] + 2, usegmt=True) if as_date else "1"
        return Reply(status=429, headers={"Retry-After": wait})

    with serving(Service(answer)) as service:
        assert ask([service.url], range(3), concurrency=1) == {0: 0, 1: 2, 2: 4}
    assert times[1] - times[0] > 0.95


def test_a_url_that_fails_is_left_alone_and_the_others_go_on(ask: Callable[..., Any]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with serving(Service(lambda _: Reply(status=500))) as broken, serving(Service(doubled)) as good:
            assert ask([dead, broken.url, good.url], concurrency=4, deadline_s=30) == EXPECTED
            assert len(broken.asked) < 30


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_refused_is_sent_once_and_told_without_its_text(status: int, ask: Callable[..., Any]) -> None:
    refusal = {"error": {"message": "row: secret text", "type": "BadRequestError", "param": "secret text", "code": 400}}

    def answer(asked: Asked) -> Reply:
        return Reply(refusal, status) if asked.body["n"] == 3 else doubled(asked)

    with serving(Service(answer)) as service:
        found = ask([service.url], range(5))
        assert len(service.asked) == 5
    failed = found.pop(3)
    assert found == {0: 0, 1: 2, 2: 4, 4: 8}
    assert isinstance(failed, Failed)
    assert f"HTTP {status} (BadRequestError, 400)" in failed.words
    assert "secret" not in failed.words


def test_a_request_that_fails_each_time_while_others_are_answered_is_given_up(ask: Callable[..., Any]) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(status=500) if asked.body["n"] == 3 else doubled(asked)

    with serving(Service(answer)) as service:
        found = ask([service.url], range(5), tries=4)
        assert sum(asked.body["n"] == 3 for asked in service.asked) == 4
    assert isinstance(found[3], Failed)
    assert {n: value for n, value in found.items() if n != 3} == {0: 0, 1: 2, 2: 4, 4: 8}


@pytest.mark.parametrize("reply", [Reply(status=500), Reply(status=503), None], ids=["500", "503", "no answer"])
def test_a_service_that_stays_away_ends_the_run_for_now_and_keeps_what_was_answered(reply: Reply | None) -> None:
    is_up = threading.Event()
    is_up.set()
    found: dict[int, float] = {}
    with serving(Service(lambda asked: doubled(asked) if is_up.is_set() else reply)) as service:  # None: no answer
        client = Client(http.Service(section="reward", urls=[service.url], concurrency=2, deadline_s=0.8, tries=2))

        def ask_until_it_is_away() -> None:
            for n, value in client.ask("/double", [{"n": n} for n in range(40)], read):
                found[n] = value
                if len(found) == 10:
                    is_up.clear()

        with pytest.raises(TemporaryError, match=r"of 40 requests have no answer after reward.deadline_s, 0.8 s"):
            ask_until_it_is_away()
        client.close()
    assert len(found) >= 10
    assert found == {n: EXPECTED[n] for n in found}


@pytest.mark.parametrize(("status", "words"), [(401, "The key in REWARD_KEY"), (404, "name of the model"), (302, "")])
def test_what_cannot_work_ends_the_run_and_never_shows_the_key(
    status: int, words: str, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REWARD_KEY", KEY)
    with (
        caplog.at_level(logging.DEBUG),
        serving(Service(lambda asked: Reply({"error": asked.headers}, status, {"Location": "/x"}))) as service,
    ):
        with pytest.raises(ConfigError, match=rf"/double answers HTTP {status}.*{words}") as error:
            ask([service.url], key_variable="REWARD_KEY")
        assert {asked.headers["Authorization"] for asked in service.asked} == {f"Bearer {KEY}"}
        assert {asked.path for asked in service.asked} == {"/double"}
    assert KEY not in f"{error.value!r} {caplog.text}"


def test_a_key_that_is_not_set_is_named() -> None:
    with pytest.raises(ConfigError, match=r"reward.key_variable: NO_SUCH_KEY is not set"):
        Client(http.Service(section="reward", urls=["http://127.0.0.1:1"], key_variable="NO_SUCH_KEY"))


def test_an_answer_that_is_told_to_be_bad_is_asked_for_again(ask: Callable[..., Any]) -> None:
    tries: Counter[int] = Counter()

    def once_bad(index: int, answer: Any) -> float:
        tries[index] += 1
        if tries[index] == 1:
            raise BadAnswer("the first is never good enough")
        return read(index, answer)

    with serving(Service(doubled)) as service:
        client = Client(http.Service(section="reward", urls=[service.url]))
        assert dict(client.ask("/double", [{"n": 1}, {"n": 2}], once_bad)) == {0: 2, 1: 4}
        client.close()
        assert len(service.asked) == 4
