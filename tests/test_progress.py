"""What a user sees of a task that takes a while."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from pipeline import progress as module
from pipeline import score
from pipeline.progress import Figures, progress
from pipeline.shown import JsonFormatter


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
    assert task.view() == [f"{'█' * 20} {task}"]


def test_a_step_says_tokens_busy_workers_and_what_was_dropped(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    task = module._Task("scored", 100, 0, "rows")
    now = 110.0
    task.count(20, Figures(num_shards=1, num_tokens=1000, busy_s={"read": 1.0, "policy": 8.0}, dropped={}))
    now = 120.0
    dropped = {"too_long": 2, "tied_rewards": 3}
    task.count(
        20, Figures(num_shards=2, num_tokens=5000, busy_s={"read": 2.0, "policy": 16.8, "commit": 0.2}, dropped=dropped)
    )
    counts = "scored: 40 of 100 rows, 2 shards, 0:00:20 so far, 2 rows a second, 400 tokens a second, 0:00:30 left"
    busy, lost = "workers busy: 0.1 read, 0.8 policy", "dropped: 5 (tied_rewards 3, too_long 2)"
    assert str(task) == "; ".join([counts, busy, lost])
    assert task.view() == [f"{'█' * 8}{'░' * 12} {counts}", f"{' ' * 20} {busy}", f"{' ' * 20} {lost}"]
    assert task.fields() == {
        "task": "scored",
        "done": 40,
        "total": 100,
        "unit": "rows",
        "seconds": 20.0,
        "per_second": 2.0,
        "seconds_left": 30.0,
        "shards": 2,
        "tokens_per_second": 400.0,
        "workers_busy": {"read": 0.1, "policy": 0.84, "commit": 0.01},
        "dropped": dropped,
    }


def test_a_task_that_ends_at_once_says_nothing(caplog, monkeypatch):
    monkeypatch.setattr(module, "_SHORT_S", 2.0)
    caplog.set_level(logging.INFO)
    with progress("prompts", 10) as count:
        count(10)
    assert caplog.messages == []


ON_A_TERMINAL = """
import logging, time
from pipeline import progress as module
from pipeline import score
from pipeline.progress import Figures, progress
module._REDRAW_S = module._SHORT_S = 0.05
logging.basicConfig(format="%(message)s")
with progress("scored", 4) as count:
    count(2, Figures(num_shards=1, num_tokens=9, busy_s={"policy": 999.0}, dropped={"too_long": 1}))
    time.sleep(0.3)
    logging.warning("look")
    time.sleep(0.2)
    print("a result")
"""


def test_a_terminal_has_one_view_that_is_redrawn_with_lines_of_the_log_above_it():
    shown, stdout = on_a_terminal(sys.executable, "-c", ON_A_TERMINAL)
    assert stdout == "a result\n"
    lines = [line for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n").split("\n") if line]
    assert lines.count("look") == 1
    assert lines.index("look") < max(i for i, line in enumerate(lines) if line.startswith("█"))
    assert lines[-3].startswith(f"{'█' * 10}{'░' * 10} scored: 2 of 4 rows, 1 shard, 0:00:0")
    assert re.fullmatch(r" +workers busy: [\d.]+ policy", lines[-2])
    assert lines[-1].strip() == "dropped: 1 (too_long 1)"


def on_a_terminal(*command):
    """What a command writes to a terminal of 120 columns as its stderr, and to a pipe as its stdout."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "120", "TERM": "xterm"} | {"TQDM_DISABLE": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # the terminal ends with its last writer
            pass
        stdout = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode(), stdout


def test_a_log_of_json_holds_the_figures(capfd, monkeypatch):
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    with progress("scored", 4) as count:
        count(2, Figures(num_shards=1, num_tokens=9, busy_s={}, dropped={"too_long": 1}))
        time.sleep(0.2)
    line = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert (line["level"], line["logger"], line["task"]) == ("INFO", "pipeline.progress", "scored")
    assert (line["done"], line["total"], line["dropped"]) == (2, 4, {"too_long": 1})
    assert line["message"].startswith("scored: 2 of 4 rows, 1 shard, ")


def test_a_step_gives_the_figures_of_its_shards(caplog, monkeypatch):
    monkeypatch.setattr(module, "_SHORT_S", 0.0)
    caplog.set_level(logging.INFO)
    texts = ["a", "b", "same"]  # the last pair has equal answers
    rows = [
        {"id": text, "prompt": "p", "chosen": text, "rejected": "same", "reward_chosen": 1.0, "reward_rejected": 0.0}
        for text in texts
    ]
    score(rows, reward="columns", source={"id_column": "id"}, run={"shard_rows": 1, "max_dropped": 1.0})
    [*_, last] = [record.fields for record in caplog.records if record.name == "pipeline.progress"]
    assert (last["task"], last["done"], last["total"], last["shards"]) == ("scored", 3, 3, 3)
    assert last["dropped"] == {"identical_responses": 1}
    assert {*last["workers_busy"]} == {"read", "commit"}


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
