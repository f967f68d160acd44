"""The rounds of self-play side by side, as text: one column a round, one line a number, from the rounds' reports.

A report is JSON: `round`; `evaluation` as `evaluation.compare_policies` gives it; `expansions` with the counts of each,
whose numbers are added up; `strategies`, the selected prompts by strategy; `margins` of selected pairs before and after
training; `training` and `measuring`. What no round has makes no line, and what a round lacks is a dash.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from pipeline.selection.text import aligned

Report = Mapping[str, Any]

_COUNTS: Final = {
    "prompts": "prompts answered",
    "candidates": "prompts with candidates",
    "pairs": "pairs made",
    "scored": "pairs scored",
    "selected": "pairs selected",
}
_TOKENS: Final = {"tokens_generated": "tokens generated", "tokens_scored": "tokens scored"}
_ABSENT: Final = "-"


def render_rounds(reports: Sequence[Report]) -> str:
    """The table of these rounds, in their order."""
    lines: list[tuple[str, ...]] = [("round", *(str(report["round"]) for report in reports))]
    for name, cell in [*_evaluation(), *_margins(), *_counts(reports), *_seconds(reports)]:
        cells = [_cell(cell, report) for report in reports]
        if any(text != _ABSENT for text in cells):
            lines.append((name, *cells))
    return aligned(lines)


_Line = tuple[str, Callable[[Report], str]]


def _evaluation() -> list[_Line]:
    return [
        ("held-out reward", partial(_measured, "reward", "")),
        ("  minus round 0", partial(_measured, "difference", "+")),
        ("  win rate against round 0", partial(_measured, "win_rate", "")),
        ("  prompts compared", lambda report: _whole(report["evaluation"]["num_prompts"])),
        ("  prompts without a reward", lambda report: _whole(report["evaluation"]["num_unscored"])),
        ("  tokens of a response", lambda report: f"{report['evaluation']['response_tokens']:.1f}"),
        ("  finished", lambda report: f"{report['evaluation']['finished']:.0%}"),
    ]


def _margins() -> list[_Line]:
    return [
        ("explicit margin of selected pairs", partial(_margin, "explicit")),
        ("  implicit, before training", partial(_margin, "implicit_before")),
        ("  implicit, after training", partial(_margin, "implicit_after")),
    ]


def _counts(reports: Sequence[Report]) -> list[_Line]:
    strategies = sorted({name for report in reports for name in report.get("strategies", {})})
    reasons = sorted({reason for report in reports for counts in _expansions(report) for reason in counts["drops"]})
    return [
        *((text, partial(_total, key)) for key, text in _COUNTS.items()),
        *((f"  prompts selected, {name}", partial(_selected, name)) for name in strategies),
        *((f"  dropped, {reason}", partial(_sum_of, "drops", reason, digits=0)) for reason in reasons),
        *((text, partial(_total, key)) for key, text in _TOKENS.items()),
        ("tokens generated to measure", lambda report: _whole(report["measuring"]["tokens_generated"])),
    ]


def _seconds(reports: Sequence[Report]) -> list[_Line]:
    steps = dict.fromkeys(step for report in reports for counts in _expansions(report) for step in counts["seconds"])
    return [
        *((f"seconds, {step}", partial(_sum_of, "seconds", step, digits=1)) for step in steps),
        ("seconds, train", lambda report: f"{report['training']['seconds']:,.1f}"),
        ("seconds, measure", lambda report: f"{sum(report['measuring']['seconds'].values()):,.1f}"),
    ]


def _cell(cell: Callable[[Report], str], report: Report) -> str:
    try:
        return cell(report)
    except (KeyError, TypeError):  # the round has no such number
        return _ABSENT


def _expansions(report: Report) -> Iterable[Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = report.get("expansions", {})
    return found.values()


def _measured(name: str, sign: str, report: Report) -> str:
    value = report["evaluation"][name]
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def _margin(name: str, report: Report) -> str:
    return f"{report['margins'][name]:+.4f}"


def _selected(strategy: str, report: Report) -> str:
    return _whole(report["strategies"].get(strategy, 0))


def _total(key: str, report: Report) -> str:
    return _whole(sum(counts[key] for counts in report["expansions"].values()))


def _sum_of(group: str, key: str, report: Report, *, digits: int) -> str:
    return f"{sum(counts[group].get(key, 0) for counts in report['expansions'].values()):,.{digits}f}"


def _whole(number: int) -> str:
    return f"{number:,}"
