"""What a user sees of a task that takes a while."""

import io
import logging
import re
import time

import pytest

from pipeline import progress as module
from pipeline.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("_REDRAW_S", "_SHORT_S", "_LINE_S"):
        monkeypatch.setattr(module, name, 0.05)


def test_lines_of_the_log_say_how_far_it_is_while_nothing_finishes(caplog):
    caplog.set_level(logging.INFO)
    with progress("scored", 2000, done=1000) as count:
        time.sleep(0.2)
        waiting = caplog.messages[-1]
        count(500)
        time.sleep(0.2)
        begun = caplog.messages[-1]
        count(400)
        time.sleep(0.2)
        measured = caplog.messages[-1]
        count(100)
    assert waiting == "scored: 1,000 of 2,000 rows, 0:00:00 so far"
    assert begun == "scored: 1,500 of 2,000 rows, 0:00:00 so far"
    assert re.fullmatch(
        r"scored: 1,900 of 2,000 rows, 0:00:0\d so far, [\d,.e+]+ rows a second, 0:00:00 left", measured
    )
    assert caplog.messages[-1].startswith("scored: 2,000 of 2,000 rows, ")
    assert 8 <= len(caplog.messages) <= 14


def test_the_rate_leaves_out_the_time_before_the_first_rows(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    task = module._Task("scored", 100, 0, "rows")
    now = 160.0
    task.count(8)
    assert str(task) == "scored: 8 of 100 rows, 0:01:00 so far"
    now = 170.0
    task.count(20)
    assert str(task) == "scored: 28 of 100 rows, 0:01:10 so far, 2 rows a second, 0:00:36 left"
    now = 200.0
    task.count(72)
    assert str(task) == "scored: 100 of 100 rows, 0:01:40 so far, 1 rows a second, 0:00:00 left"
    assert task.bar() == "█" * 20


def test_a_task_that_ends_at_once_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    with progress("prompts", 10) as count:
        count(10)
    assert caplog.messages == []


def test_a_terminal_has_one_bar_that_is_redrawn_and_log_lines_above_it(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    handler = logging.StreamHandler(screen)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with progress("scored", 4) as count:
        count(2)
        time.sleep(0.2)
        logging.getLogger("pipeline.x").warning("look")
    shown = screen.getvalue()
    assert "█" * 10 + "░" * 10 + " scored: 2 of 4 rows" in shown
    assert shown.count("\n") == 2
    assert "\rlook\n" in shown.replace(" ", "")
    assert logging.root.handlers == [handler]


def test_where_a_task_failed_is_said_and_the_error_goes_on(caplog):
    caplog.set_level(logging.INFO)

    def fail():
        with progress("scored", 4) as count:
            count(1)
            time.sleep(0.2)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    assert "1 of 4 rows" in caplog.messages[-1]
