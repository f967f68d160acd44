"""A limit on the time of one call: what hangs is ended in whatever thread it is, and nothing else is hit."""

import itertools
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.models import time_limit
from pipeline.models.time_limit import limited


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch):
    monkeypatch.setattr(time_limit, "TICK_S", 0.0005)


def hang() -> None:
    for _ in itertools.count():
        pass


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def hang_again() -> None:
    try:
        hang()
    except BaseException:  # noqa: BLE001 - as a finaliser that happened to run
        hang()


def test_a_call_gives_what_its_function_gives():
    assert limited(lambda: 7, 10) == 7
    with pytest.raises(KeyError):
        limited(lambda: {}[0], 10)


@pytest.mark.parametrize("function", [hang, hang_again])
def test_a_call_that_hangs_ends_in_any_thread(function):
    with pytest.raises(TimeoutError, match=r"longer than 0\.01 s"):
        limited(function, 0.01)
    with ThreadPoolExecutor(2) as pool:
        hanging = [pool.submit(limited, function, 0.01) for _ in range(2)]
        assert [type(call.exception()) for call in hanging] == [TimeoutError] * 2


def test_a_forked_process_has_its_own_limit():
    with pytest.raises(TimeoutError):
        limited(hang, 0.01)
    child = os.fork()
    if not child:
        try:
            limited(hang, 0.01)
        except TimeoutError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_functions_can_be_traced_after_a_call_that_hung():
    script = """
import sys
from pipeline.models.time_limit import limited
def hang():
    while True:
        pass
try:
    limited(hang, 0.01)
except TimeoutError:
    sys.settrace(lambda *event: None)
    (lambda: print("traced"))()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "traced\n"


@pytest.fixture
def _threads_take_turns_often():
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_threads_take_turns_often")
def test_no_exception_gets_out_of_the_call_that_it_was_meant_for(monkeypatch):
    throw = time_limit._throw_into

    def slowly(thread, error):  # so that many a call ends while it is aimed at
        time.sleep(0.0005)
        throw(thread, error)

    monkeypatch.setattr(time_limit, "_throw_into", slowly)
    outcomes: list[str] = []

    def call_often(seed: int) -> None:
        lengths = random.Random(seed)
        try:
            for _ in range(400):
                try:
                    limited(lambda: spin(lengths.uniform(0, 0.004)), 0)
                    outcomes.append("in time")
                except TimeoutError:
                    outcomes.append("too long")
                spin(0.0005)
        except BaseException as error:  # noqa: BLE001 - the exception of the time limit is none that others know
            outcomes.append(repr(error))

    threads = [threading.Thread(target=call_often, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"in time", "too long"}
    assert len(outcomes) == 800
