"""What a selection kept, in numbers: one more pass over the source, ids and margins only, never text.

`summarise` gives a JSON-ready dict, `render` a table for the terminal. Like the selection itself, the numbers do not
depend on the order of the rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline import schema
from pipeline.metrics.columns import BoolArray, FloatArray, single_array
from pipeline.metrics.margins import EXPLICIT_COLUMNS, explicit_margin
from pipeline.metrics.moments import Moments, moments_of
from pipeline.metrics.objectives import objective_columns
from pipeline.metrics.terms import TermCache
from pipeline.selection.leaders import Leaders
from pipeline.selection.passes import Passes, Threads
from pipeline.selection.selection import Selection, subset_margins
from pipeline.selection.source import Block, Part, ScoreSource, parts_of
from pipeline.selection.tally import empty_tally, tally_block, with_tally
from pipeline.selection.text import aligned
from pipeline.shown import shown

GROUPS: Final = ("all", "selected")
NOTHING: Final = "-"
_DEFAULT_RULES: Final = {"labels": "keep", "deduplicate": "none"}
MOST_GROUPS: Final = 20
SIGNS: Final[Mapping[str, str]] = {
    "contradicted_by_reward": "reward prefers rejected",
    "contradicted_by_policy": "policy prefers rejected",
    "reward_against_policy": "reward and policy disagree",
}


def summarise(
    source: ScoreSource, selection: Selection, *, num_examples: int = 10, passes: Passes | None = None
) -> dict[str, Any]:
    """Numbers of a selection from the source it was made from, JSON-ready.

    selection: the rule and its counts. margins: count, mean and standard deviation of both margins, signed implicit,
    over all ranked rows and over the selected ones, where the columns hold values. signs: rows whose reward margin
    (chosen minus rejected, whatever metric.explicit is) or implicit margin is below zero, and rows where one is above
    zero and the other below. top, bottom: the ranked rows of highest and lowest score, ties by id. Labels are counted
    after select.labels has treated them.

    Raises:
        SchemaError: a column of either margin is missing; a scored dataset has all of them, null where not computed.
        IntegrityError: the source is not the one that the selection was made from.
    """
    passes = passes if passes is not None else Threads()
    parts = parts_of(source, selection.duplicates, selection.select.labels, passes.num_parts)
    return summarise_parts(passes, parts, selection, num_examples=num_examples).report


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsReport:
    """The report, and how many rows of each part are kept."""

    report: dict[str, Any]
    num_kept: list[int]


def summarise_parts(
    passes: Passes, parts: Sequence[Part], selection: Selection, *, num_examples: int = 10
) -> PartsReport:
    """As `summarise`, over parts."""
    whole = _PartReport(selection, num_examples)
    num_kept = []
    for of_part in passes.run(ReportTask(selection=selection, num_examples=num_examples), parts):
        whole.merge(of_part)
        num_kept.append(int(of_part.tally.num_kept.sum()))
    return PartsReport(report=whole.to_dict(with_tally(selection, whole.tally)), num_kept=num_kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTask:
    """The numbers of one part; picklable."""

    selection: Selection
    num_examples: int

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads."""
        selection = self.selection
        margins = EXPLICIT_COLUMNS["signed"] + EXPLICIT_COLUMNS[selection.metric.explicit]
        objective = objective_columns(selection.objective) if selection.objective is not None else ()
        return (schema.ID, *selection.columns, *margins, *objective)

    def __call__(self, part: Part) -> "_PartReport":
        """The numbers."""
        report = _PartReport(self.selection, self.num_examples)
        for block in part.blocks(self.columns):
            report.add(block, self.selection)
        return report


class _PartReport:
    """Running numbers of some rows."""

    def __init__(self, selection: Selection, num_examples: int) -> None:
        self.tally = empty_tally(selection)
        self.groups = {group: _Tally() for group in GROUPS}
        self.top = Leaders(num_examples, sign=1)
        self.bottom = Leaders(num_examples, sign=-1)

    def add(self, block: Block, selection: Selection) -> None:
        cache = TermCache(block.rows)
        scores = selection.ranker.score(cache, selection.fitted)
        ranked = np.isfinite(scores)
        margins = subset_margins(block.rows, selection.ranker)
        reward = explicit_margin(block.rows, "signed")
        self.groups["all"].add(margins, reward, ranked)
        self.groups["selected"].add(margins, reward, tally_block(self.tally, selection, block, cache))
        for leaders in (self.top, self.bottom):
            leaders.add(scores, single_array(block.rows, schema.ID), margins)

    def merge(self, other: "_PartReport") -> None:
        self.tally.merge(other.tally)
        for group, tally in self.groups.items():
            tally.merge(other.groups[group])
        self.top.merge(other.top)
        self.bottom.merge(other.bottom)

    def to_dict(self, selection: Selection) -> dict[str, Any]:
        return {
            "selection": selection.to_dict(),
            "margins": {group: tally.margins() for group, tally in self.groups.items()},
            "signs": {group: tally.signs() for group, tally in self.groups.items()},
            "top": self.top.rows(),
            "bottom": self.bottom.rows(),
        }


class _Tally:
    """Running numbers of one group of rows."""

    def __init__(self) -> None:
        self.moments = {schema.MARGIN_EXPLICIT: Moments(), schema.MARGIN_IMPLICIT: Moments()}
        self.counts = dict.fromkeys(SIGNS, 0)
        self.known = dict.fromkeys(SIGNS, 0)

    def add(self, margins: tuple[FloatArray, FloatArray], reward: FloatArray, rows: BoolArray) -> None:
        for name, values in zip(self.moments, margins, strict=True):
            kept = values[rows]
            self.moments[name] += moments_of(kept[np.isfinite(kept)])
        implicit = margins[1]
        with np.errstate(invalid="ignore"):
            opposed = np.sign(reward) * np.sign(implicit) < 0
            below = (reward < 0, implicit < 0, opposed)
        has_reward, has_implicit = ~np.isnan(reward), ~np.isnan(implicit)
        for name, hits, known in zip(SIGNS, below, (has_reward, has_implicit, has_reward & has_implicit), strict=True):
            self.counts[name] += int(np.count_nonzero(hits & rows))
            self.known[name] += int(np.count_nonzero(known & rows))

    def merge(self, other: "_Tally") -> None:
        for name, moments in other.moments.items():
            self.moments[name] += moments
        for name in SIGNS:
            self.counts[name] += other.counts[name]
            self.known[name] += other.known[name]

    def margins(self) -> dict[str, Any]:
        return {name: dict(moments.to_dict()) for name, moments in self.moments.items()}

    def signs(self) -> dict[str, Any]:
        return {name: _share(self.counts[name], self.known[name]) for name in SIGNS}


def _share(count: int, num_rows: int) -> dict[str, int | float | None]:
    return {"count": count, "of": num_rows, "share": count / num_rows if num_rows else None}


def render(report: Mapping[str, Any]) -> str:
    """The report of `summarise` as a table for the terminal; numbers that nothing gives are left out."""
    chosen = report["selection"]
    rows: list[tuple[str, ...]] = [
        ("rows scored", f"{chosen['num_rows']:,}", ""),
        *((f"  {reason}", f"{count:,}", "") for reason, count in chosen["excluded"].items() if count),
        ("rows ranked and selected", f"{chosen['num_ranked']:,}", f"{chosen['k']:,}"),
    ]
    for name, cut in (chosen["groups"] or {}).items():
        rows.append((f"  {chosen['select']['group_by']} {name}", f"{cut['num_candidates']:,}", f"{cut['k']:,}"))
    for name in (schema.MARGIN_EXPLICIT, schema.MARGIN_IMPLICIT):
        stats = [report["margins"][group][name] for group in GROUPS]
        rows += [(f"{name} {number}", *(_number(of[number]) for of in stats)) for number in ("mean", "std")]
    signs = [report["signs"][group] for group in GROUPS]
    rows += [(label, *(_percent(of[sign]["share"]) for of in signs)) for sign, label in SIGNS.items()]
    if chosen["select"]["labels"] == "swap":
        rows.append(("labels swapped", f"{chosen['num_contradicted']:,}", ""))
    rows.append(("threshold", "", _number(chosen.get("threshold"))))
    if chosen.get("num_tied") != chosen.get("num_tied_kept"):
        rows.append(("rows at the threshold", f"{chosen['num_tied']:,}", f"{chosen['num_tied_kept']:,}"))
    known = [row for row in rows if {*row[1:]} - {"", NOTHING}]
    parts = [_rule(chosen), aligned([("", *GROUPS), *known])]
    parts += [_examples(f"{end} of all ranked rows", report[end]) for end in ("top", "bottom") if report[end]]
    return "\n\n".join(parts)


def _rule(chosen: Mapping[str, Any]) -> str:
    """The metric, the objective and how much is kept, in one line."""
    metric, objective, select = (chosen[name] for name in ("metric", "objective", "select"))
    name = metric["name"]
    settings = {
        "explicit": metric["explicit"],
        "implicit": f"{metric['implicit']}, {metric['order']} first",
        "random": f"seed {select['seed']}",
        "potential": f"{metric['explicit']} explicit - {_weight(chosen)} x {metric['implicit']} implicit, "
        f"normalise {metric['normalise']}",
    }
    kept = [
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {shown(value)}"
        for key in ("fraction", "k", "min_score", "max_score", "per_prompt", "group_by")
        if (value := select[key]) is not None
    ]
    kept += [f"{key} {select[key]}" for key, default in _DEFAULT_RULES.items() if select[key] != default]
    parameters = "".join(f" {key} {value}" for key, value in (objective or {}).items() if key != "name")
    under = f"objective {objective['name']}{parameters}" if objective else "margins as given"
    of_metric = f"metric {name}" + (f" ({settings[name]})" if name in settings else "")
    return ", ".join([of_metric, under, *kept])


def _weight(chosen: Mapping[str, Any]) -> str:
    """The weight, and where it comes from if it was not given."""
    metric = chosen["metric"]
    if metric["weight"] != "auto":
        return str(metric["weight"])
    found = chosen["fitted"]["weight"]
    why = "" if found else ": the margins do not rise together, so the explicit one decides alone"
    return f"{found:.3g} (auto by {metric['ratio']}{why})"


def _examples(title: str, examples: Iterable[Mapping[str, Any]]) -> str:
    rows = [*examples]
    numbers = [f.name for f in schema.SUBSET_FIELDS if any(row[f.name] is not None for row in rows)]
    lines = [(str(row[schema.ID]), *(_number(row[name]) for name in numbers)) for row in rows]
    return aligned([(title, *numbers), *lines])


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.2%}"
