"""The training study with real models at its smallest scale: killed, run again, reported."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jobs.study import training
from jobs.study.cells import ARMS, BEFORE, CONTROL_ARMS, MAIN_ARMS, cells_of

_PATIENCE_S = 300


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_where_it_stopped(smollm2_dir, tmp_path, capsys):
    del smollm2_dir  # the study finds it by itself
    results = tmp_path / "results.jsonl"
    arguments = ["--scale", "tiny", "--objectives", "simpo", "--seeds", "1"]
    arguments += ["--results", str(results), "--work", str(tmp_path)]
    first = subprocess.Popen([sys.executable, "-m", "jobs.study.training", "--part", "main", *arguments])
    deadline = time.monotonic() + _PATIENCE_S
    while first.poll() is None and not results.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = results.read_text()
    assert before.count("\n") == 1

    training.main(["--part", "main", *arguments])
    assert results.read_text().startswith(before)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["seed"], line["arm"]) for line in lines] == [(0, arm) for arm in (BEFORE, *training.TINY_ARMS)]
    best, worst = lines[1:]
    assert best["gold_margin"] > worst["gold_margin"]
    assert best["steps"] == worst["steps"] > 0
    assert best["kl"] != 0  # the policy was trained
    with results.open("a") as file:  # one seed has no interval, and a second one would only take as long again
        file.writelines(json.dumps({**line, "seed": 1}) + "\n" for line in lines)
    training.main([*arguments, "--report"])
    out = capsys.readouterr().out
    assert all(f"| {arm} | 2 |" in out for arm in training.TINY_ARMS)


def test_every_arm_is_run_once_in_parts_main_and_arms():
    cells = [cell for part in ("main", "arms") for cell in cells_of(part, "simpo", 0, 0.25)]
    assert [cell.arm for cell in cells] == [BEFORE, *[*ARMS][:-1]]
    assert {cell.fraction for cell in cells if cell.arm in MAIN_ARMS} == {0.25}
    assert {cell.fraction for cell in cells if cell.arm.startswith("all pairs")} == {1.0}


def test_the_control_starts_from_the_policy_that_is_its_reference():
    before, *cells = cells_of("control", "dpo", 0, 0.35)
    assert before.arm == BEFORE
    assert {cell.start for cell in (before, *cells)} == {"base"}
    assert tuple(cell.arm for cell in cells) == CONTROL_ARMS


def test_other_prompts_or_sizes_are_another_setup(tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text("a")
    other.write_text("b")
    cpu, gpu = training.SCALES["cpu"], training.SCALES["gpu"]
    assert len({training.setup_of(cpu, one), training.setup_of(cpu, other), training.setup_of(gpu, one)}) == 3


@pytest.mark.parametrize(
    "arguments", [[], ["--results", "r", "--part", "none-such"], ["--results", "r", "--scale", "x"]]
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        training.main(arguments)
    assert ended.value.code == 2
    assert "--" in capsys.readouterr().err
