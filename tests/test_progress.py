"""What a user sees of a task that takes a while."""

import io
import logging
import time

import pytest

from pipeline import progress as module
from pipeline.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("_REDRAW_S", "_FIRST_LINE_S", "_LINE_S"):
        monkeypatch.setattr(module, name, 0.05)


def test_lines_of_the_log_say_how_far_it_is_while_nothing_finishes(caplog):
    caplog.set_level(logging.INFO)
    with progress("scored", 2000, done=1000) as count:
        time.sleep(0.2)
        waiting = caplog.messages[-1]
        count(500)
        time.sleep(0.2)
    assert waiting.startswith("scored: 1,000 of 2,000 rows, ")
    assert "1,500 of 2,000 rows" in caplog.messages[-1]
    assert " rows/s, 00:00 so far, 00:00 left" in caplog.messages[-1]
    assert 5 <= len(caplog.messages) <= 10


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
    assert "scored  50%|" in shown
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
