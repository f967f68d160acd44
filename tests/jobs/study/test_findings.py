"""The report of the training study, from lines as runs leave them."""

import json
import re

import numpy as np
import pytest

from jobs.study import findings
from jobs.study.cells import BEFORE
from pipeline.errors import DataError

RANDOM = findings.BASELINE
FACTS = {"pairs": 8, "tokens": 16.0, "kl": 1.0, "perplexity": 20.0, "accuracy": 0.4, "wrong_labels": 0.1}


def line(seed, arm, gold, **changes):
    shared = {
        "scale": "cpu",
        "setup": "0",
        "part": "main",
        "objective": "simpo",
        "start": "base",
        "world": "noisy proxy",
    }
    return {**shared, "seed": seed, "arm": arm, "fraction": 0.25, "num_rounds": 1, "gold": gold, **FACTS, **changes}


def lines(effects, num_seeds=8, num_prompts=32):
    """Simulated outcomes: each arm adds its effect to rewards of unit spread, with noise of its own."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(num_seeds):
        start = rng.normal(size=num_prompts)
        found.append(line(seed, BEFORE, start.tolist(), fraction=0.0))
        for arm, effect in effects.items():
            found.append(line(seed, arm, (start + effect + 0.5 * rng.normal(size=num_prompts)).tolist()))
    return found


def row(text, arm):
    return next(
        [cell.strip() for cell in found.split("|")] for found in text.splitlines() if found.startswith(f"| {arm}")
    )


def test_an_arm_that_was_planted_to_be_better_is_found_and_an_equal_one_is_not():
    text = findings.report(lines({"gold margin": 0.4, RANDOM: 0.0, "explicit": 0.0}), "cpu", "main")
    p_of = {arm: float(row(text, arm)[6]) for arm in ("gold margin", "explicit")}
    assert p_of["gold margin"] < 0.01
    assert p_of["explicit"] > 0.2
    assert row(text, "gold margin")[5].startswith("+")
    assert "would be found with 80 % power" in text
    bars = {arm: next(bar for bar in text.splitlines() if bar.startswith(f"{arm} ")) for arm in p_of}
    assert bars["gold margin"].index("o", 34) > bars["explicit"].index("o", 34)  # the mean, beyond the name


def test_the_control_names_the_difference_that_was_planted_and_finds_no_other():
    effects = {"gold margin": 0.3, "gold margin, reversed": -0.3, RANDOM: 0.0, "random, draw 2": 0.0}
    text = findings.report([{**each, "part": "control"} for each in lines(effects)], "cpu", "control")
    [told] = re.findall(r"Planted: gold margin minus gold margin, reversed is \+0\.\d+ \[\+0.*\], p = (.*)\.", text)
    assert float(told) < 0.001
    assert float(row(text, "random, draw 2")[6]) > 0.2


def test_only_whole_blocks_count():
    every = lines({RANDOM: 0.0, "explicit": 0.0})
    text = findings.report(every[:-1], "cpu", "main")  # the last arm of the last seed was not run
    assert row(text, RANDOM)[2] == row(text, "explicit")[2] == "7"
    assert "no two seeds are whole yet" in findings.report(every[:4], "cpu", "main")


def test_later_arms_are_compared_on_the_seeds_that_have_them():
    later = [line(seed, "bees-mul", [9.0] * 32, part="arms") for seed in range(3)]
    text = findings.report(lines({RANDOM: 0.0}) + later, "cpu", "main")
    assert (row(text, RANDOM)[2], row(text, "bees-mul")[2]) == ("8", "3")
    assert row(text, "bees-mul")[4].startswith("1.000")


def test_a_torn_line_is_left_out_and_other_setups_are_not_mixed(tmp_path, capsys):
    found = lines({RANDOM: 0.0})
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join([*map(json.dumps, found), '{"scale": "c']))
    assert findings.read_lines(file) == found
    assert "is torn" in capsys.readouterr().err
    with pytest.raises(DataError, match="2 setups"):
        findings.report([*found, {**found[0], "setup": "1"}], "cpu", "main")
