"""The results of the training study as Markdown: for each objective a table and a picture of the win rates."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from jobs.study import evidence
from jobs.study.cells import BEFORE, CONTROL_ARMS, OBJECTIVES
from jobs.study.evidence import FloatArray
from jobs.study.table import markdown
from pipeline.errors import DataError
from pipeline.metrics.intervals import Interval

BASELINE: Final = "random, draw 1"
_WIDTH: Final = 50
_HEADER: Final = (
    "arm", "seeds", "pairs", "win rate", "minus random", "p (Holm)", "gain of gold reward", "tokens", "KL",
    "perplexity", "accuracy", "wrong labels",
)  # fmt: skip

Line: TypeAlias = Mapping[str, Any]
Arm: TypeAlias = tuple[str, str, int, float, str]  # start, world, rounds, fraction, name


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """An arm over the seeds of whole blocks; arrays are [num_seeds, num_prompts].

    facts: means over seeds of the other numbers of its lines.
    """

    seeds: tuple[int, ...]
    wins: FloatArray
    gains: FloatArray
    facts: Mapping[str, float]

    def minus(self, other: "Finding") -> FloatArray:
        """Differences of wins on the seeds that both have."""
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        mine, theirs = ([finding.seeds.index(seed) for seed in seeds] for finding in (self, other))
        difference: FloatArray = self.wins[mine] - other.wins[theirs]
        return difference


def read_lines(results: Path) -> list[Line]:
    """The lines of a file of results; none if there is no file. A torn line is left out, and said."""
    lines: list[Line] = []
    for number, text in enumerate(results.read_text(encoding="utf-8").splitlines() if results.is_file() else (), 1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            print(f"line {number} of {results} is torn; its cell is run again", file=sys.stderr)
    return lines


def report(lines: Sequence[Line], scale: str, part: str) -> str:
    """Tables and pictures of a part of the study.

    Raises:
        DataError: there is no such line, the lines are of several setups, or fewer than two seeds are whole.
    """
    parts = ("main", "arms") if part == "main" else (part,)
    lines = [line for line in lines if line["scale"] == scale and line["part"] in parts]
    setups = {line["setup"] for line in lines}
    if len(setups) != 1:
        raise DataError(
            f"the results hold {len(setups)} setups of scale {scale}, part {part}; wanted 1. Keep the results of "
            "different prompts or versions of the study in different files."
        )
    by_objective = {name: [line for line in lines if line["objective"] == name] for name in OBJECTIVES}
    return "\n\n".join(_of_objective(name, found, part) for name, found in by_objective.items() if found)


def findings_of(lines: Sequence[Line]) -> dict[Arm, Finding]:
    """What each arm gave on the seeds whose block, all arms of its part, is whole.

    Arms without two such seeds are left out. A line that stands twice counts once.
    """
    found = {(line["seed"], _arm(line)): line for line in reversed(lines)}
    before = {(line["seed"], line["start"]): line for line in lines if line["arm"] == BEFORE}
    parts = {_arm(line): line["part"] for line in lines if line["arm"] != BEFORE}
    results = {}
    for arm, part in parts.items():
        block = [other for other in parts if parts[other] == part]
        seeds = sorted({seed for seed, _ in found})
        whole = [seed for seed in seeds if all((seed, other) in found for other in block) and (seed, arm[0]) in before]
        if len(whole) < 2:
            continue
        of_arm = [found[seed, arm] for seed in whole]
        after, start = _rewards(of_arm), _rewards([before[seed, arm[0]] for seed in whole])
        facts = {
            name: statistics.fmean(line[name] for line in of_arm)
            for name in ("pairs", "tokens", "kl", "perplexity", "accuracy", "wrong_labels")
        }
        facts["refused"] = sum(line.get("refused", False) for line in of_arm)
        wins = evidence.wins(after, start)
        results[arm] = Finding(seeds=tuple(whole), wins=wins, gains=after - start, facts=facts)
    return results


def _of_objective(objective: str, lines: Sequence[Line], part: str) -> str:
    found = findings_of(lines)
    if not found:
        return f"**{objective}**, {len(lines)} lines: no two seeds are whole yet."
    differences = {}
    for arm, finding in found.items():
        # Arms on the whole pool are compared with the random draw of the others' share.
        same = [other for other in found if other[:3] == arm[:3] and other[4] == BASELINE]
        baseline = next((other for other in same if other[3] == arm[3]), same[0] if same else arm)
        if baseline != arm:
            differences[arm] = finding.minus(found[baseline])
    corrected = evidence.holm({arm: evidence.p_value(values) for arm, values in differences.items()})
    rows, picture = [], []
    for arm, finding in found.items():
        rate = evidence.bootstrap_interval(finding.wins)
        facts = finding.facts
        rows.append((
            f"{_name(arm, part)} (refused {facts['refused']})" if facts["refused"] else _name(arm, part),
            str(len(finding.seeds)), f"{facts['pairs']:.0f}",
            _shown(rate, "") + _other(finding.wins, rate),
            _shown(evidence.bootstrap_interval(differences[arm]), "+") if arm in differences else "",
            f"{corrected[arm]:.2f}" if arm in corrected else "",
            _shown(evidence.bootstrap_interval(finding.gains), "+"),
            f"{facts['tokens']:.1f}", f"{facts['kl']:.1f}", f"{facts['perplexity']:.1f}", f"{facts['accuracy']:.3f}",
            f"{facts['wrong_labels']:.0%}",
        ))  # fmt: skip
        picture.append(f"{_name(arm, part):<34}{_bar(rate)}")
    axis = " " * 34 + "0" + " " * (_WIDTH // 2 - 2) + "0.5" + " " * (_WIDTH // 2 - 2) + "1"
    return "\n\n".join((
        f"**{objective}**, {len(lines)} lines. {_detectable(differences)} {_planted(found, part)}".rstrip(),
        markdown(_HEADER, rows),
        "\n".join(["```text", axis, *picture, "```"]),
    ))  # fmt: skip


def _arm(line: Line) -> Arm:
    return line["start"], line["world"], line["num_rounds"], line["fraction"], line["arm"]


def _rewards(lines: Sequence[Line]) -> FloatArray:
    return np.array([line["gold"] for line in lines], dtype=np.float64)


def _name(arm: Arm, part: str) -> str:
    """The arm, with what a part of the study varies."""
    start, world, rounds, fraction, name = arm
    varied = {"starts": start, "sizes": f"{fraction:g} of the pool", "rounds": f"{rounds} rounds", "worlds": world}
    return f"{name}, {varied[part]}" if part in varied else name


def _shown(value: Interval, sign: str) -> str:
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _other(values: FloatArray, first: Interval) -> str:
    """The interval of the second implementation, where it is another one."""
    second = evidence.student_interval(values.tolist())
    apart = max(abs(second.low - first.low), abs(second.high - first.high))
    return f" (t: {_shown(second, '')})" if apart > (first.high - first.low) / 10 else ""


def _detectable(differences: Mapping[Arm, FloatArray]) -> str:
    """The differences from the baseline that these data could find, by the median spread of the arms."""
    if not differences:
        return ""
    spread = statistics.median(float(np.nanmean(values, axis=1).std(ddof=1)) for values in differences.values())
    num_seeds = min(map(len, differences.values()))
    alone, among = (evidence.detectable(spread, num_seeds, number) for number in (1, len(differences)))
    return (
        f"A true difference of {alone:.2f} from {BASELINE} would be found with 80 % power, one of {among:.2f} after "
        f"Holm's correction over {len(differences)} comparisons."
    )


def _planted(found: Mapping[Arm, Finding], part: str) -> str:
    """The difference that part control plants."""
    if part != "control":
        return ""
    best, worst = (next(finding for arm, finding in found.items() if arm[4] == name) for name in CONTROL_ARMS[:2])
    difference = best.minus(worst)
    shown = _shown(evidence.bootstrap_interval(difference), "+")
    return f"Planted: {' minus '.join(CONTROL_ARMS[:2])} is {shown}, p = {evidence.p_value(difference):.1g}."


def _bar(rate: Interval) -> str:
    """An interval as a line of text, from 0 to 1."""
    low, middle, high = (round(min(max(value, 0.0), 1.0) * _WIDTH) for value in (rate.low, rate.mean, rate.high))
    marks = ["-" if low <= place <= high else " " for place in range(_WIDTH + 1)]
    marks[_WIDTH // 2] = "|"
    marks[middle] = "o"
    return "".join(marks).rstrip()
