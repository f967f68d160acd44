"""The rounds of self-play side by side, as text: one column a round, one line a number, from the rounds' reports.

A report is JSON: `round`; `evaluation` as `evaluation.compare_policies` gives it; `expansions` with the counts of each,
which are added up; `strategies`, the selected prompts by strategy; `margins` of selected pairs before and after
training; `training` and `measuring`. A number that no round has makes no line; one that a round lacks is a dash.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from pipeline.selection.text import aligned

Report = Mapping[str, Any]
_Line = tuple[str, Callable[[Report], str]]

_ABSENT: Final = "-"


def render_rounds(reports: Sequence[Report]) -> str:
    """The table of these rounds, in their order."""
    rows: list[tuple[str, ...]] = [("round", *(str(report["round"]) for report in reports))]
    for name, cell_of in _lines(reports):
        cells = [_cell(cell_of, report) for report in reports]
        if any(text != _ABSENT for text in cells):
            rows.append((name, *cells))
    return aligned(rows)


def _lines(reports: Sequence[Report]) -> Iterable[_Line]:
    counts = [each for report in reports for each in report.get("expansions", {}).values()]
    strategies = sorted({name for report in reports for name in report.get("strategies", {})})
    reasons = sorted({reason for each in counts for reason in each["drops"]})
    steps = dict.fromkeys(step for each in counts for step in each["seconds"])
    return [
        ("held-out reward", partial(_interval, "reward", "")),
        ("  minus round 0", partial(_interval, "difference", "+")),
        ("  win rate against round 0", partial(_interval, "win_rate", "")),
        ("  prompts compared", lambda report: f"{report['evaluation']['num_prompts']:,}"),
        ("  prompts without a reward", lambda report: f"{report['evaluation']['num_unscored']:,}"),
        ("  tokens of a response", lambda report: f"{report['evaluation']['response_tokens']:.1f}"),
        ("  finished", lambda report: f"{report['evaluation']['finished']:.0%}"),
        ("explicit margin of selected pairs", lambda report: f"{report['margins']['explicit']:+.4f}"),
        ("  implicit, before training", lambda report: f"{report['margins']['implicit_before']:+.4f}"),
        ("  implicit, after training", lambda report: f"{report['margins']['implicit_after']:+.4f}"),
        ("prompts answered", partial(_sum, "prompts")),
        ("prompts with candidates", partial(_sum, "candidates")),
        ("pairs made", partial(_sum, "pairs")),
        ("pairs scored", partial(_sum, "scored")),
        ("pairs selected", partial(_sum, "selected")),
        *((f"  prompts selected, {name}", partial(_selected, name)) for name in strategies),
        *((f"  dropped, {reason}", partial(_sum_in, "drops", reason, ",.0f")) for reason in reasons),
        ("tokens generated", partial(_sum, "tokens_generated")),
        ("tokens scored", partial(_sum, "tokens_scored")),
        ("tokens generated to measure", lambda report: f"{report['measuring']['tokens_generated']:,}"),
        *((f"seconds, {step}", partial(_sum_in, "seconds", step, ",.1f")) for step in steps),
        ("seconds, train", lambda report: f"{report['training']['seconds']:,.1f}"),
        ("seconds, measure", lambda report: f"{sum(report['measuring']['seconds'].values()):,.1f}"),
    ]


def _cell(cell_of: Callable[[Report], str], report: Report) -> str:
    try:
        return cell_of(report)
    except (KeyError, TypeError):  # the round has no such number
        return _ABSENT


def _interval(name: str, sign: str, report: Report) -> str:
    value = report["evaluation"][name]
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def _selected(strategy: str, report: Report) -> str:
    return f"{report['strategies'].get(strategy, 0):,}"


def _sum(key: str, report: Report) -> str:
    return f"{sum(counts[key] for counts in report['expansions'].values()):,}"


def _sum_in(group: str, key: str, style: str, report: Report) -> str:
    return f"{sum(counts[group].get(key, 0) for counts in report['expansions'].values()):{style}}"
