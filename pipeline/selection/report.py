"""What a selection kept, in numbers: one more pass over the source, ids and margins only, never text.

`summarise` gives a JSON-ready dict, `render` a table for the terminal. Like the selection itself, the numbers do not
depend on the order of the rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from pipeline import schema
from pipeline.metrics.columns import BoolArray, FloatArray, single_array
from pipeline.metrics.margins import EXPLICIT_COLUMNS, explicit_margin
from pipeline.metrics.moments import Moments, moments_of
from pipeline.metrics.objectives import objective_columns
from pipeline.selection.leaders import Leaders
from pipeline.selection.selection import Selection, subset_margins
from pipeline.selection.source import ScoreSource, blocks

GROUPS: Final = ("all", "selected")
NOTHING: Final = "-"
SIGNS: Final[Mapping[str, str]] = {
    "contradicted_by_reward": "reward prefers rejected",
    "contradicted_by_policy": "policy prefers rejected",
    "reward_against_policy": "reward and policy disagree",
}


def summarise(source: ScoreSource, selection: Selection, *, num_examples: int = 10) -> dict[str, Any]:
    """Numbers of a selection from the source it was made from, JSON-ready.

    selection: the rule and its counts. margins: count, mean and standard deviation of both margins, signed implicit,
    over all ranked rows and over the selected ones, where the columns hold values. signs: rows whose reward margin
    (chosen minus rejected, whatever metric.explicit is) or implicit margin is below zero, and rows where one is above
    zero and the other below. top, bottom: the ranked rows of highest and lowest score, ties by id.

    Raises:
        SchemaError: a column of either margin is missing; a scored dataset has all of them, null where not computed.
    """
    objective = objective_columns(selection.objective)
    columns = (
        *selection.columns,
        *EXPLICIT_COLUMNS["signed"],
        *EXPLICIT_COLUMNS[selection.metric.explicit],
        *objective,
    )
    tallies = {group: _Tally() for group in GROUPS}
    top, bottom = Leaders(num_examples, sign=1), Leaders(num_examples, sign=-1)
    for block in blocks(source, columns, selection.duplicates):
        scores = selection.ranker.score(block, selection.moments)
        ranked = np.isfinite(scores)
        margins = subset_margins(block, selection.ranker)
        ids = single_array(block, schema.ID)
        reward = explicit_margin(block, "signed")
        tallies["all"].add(margins, reward, ranked)
        tallies["selected"].add(margins, reward, selection.mask_of(scores, ids))
        for leaders in (top, bottom):
            leaders.add(scores, ids, margins)
    return {
        "selection": selection.to_dict(),
        "margins": {group: tally.margins() for group, tally in tallies.items()},
        "signs": {group: tally.signs() for group, tally in tallies.items()},
        "top": top.rows(),
        "bottom": bottom.rows(),
    }


class _Tally:
    """Running numbers of one group of rows."""

    def __init__(self) -> None:
        self._moments = {schema.MARGIN_EXPLICIT: Moments(), schema.MARGIN_IMPLICIT: Moments()}
        self._counts = dict.fromkeys(SIGNS, 0)
        self._known = dict.fromkeys(SIGNS, 0)

    def add(self, margins: tuple[FloatArray, FloatArray], reward: FloatArray, rows: BoolArray) -> None:
        for name, values in zip(self._moments, margins, strict=True):
            kept = values[rows]
            self._moments[name] += moments_of(kept[np.isfinite(kept)])
        implicit = margins[1]
        with np.errstate(invalid="ignore"):
            opposed = np.sign(reward) * np.sign(implicit) < 0
            below = (reward < 0, implicit < 0, opposed)
        has_reward, has_implicit = ~np.isnan(reward), ~np.isnan(implicit)
        for name, hits, known in zip(SIGNS, below, (has_reward, has_implicit, has_reward & has_implicit), strict=True):
            self._counts[name] += int(np.count_nonzero(hits & rows))
            self._known[name] += int(np.count_nonzero(known & rows))

    def margins(self) -> dict[str, Any]:
        return {name: dict(moments.to_dict()) for name, moments in self._moments.items()}

    def signs(self) -> dict[str, Any]:
        return {name: _share(self._counts[name], self._known[name]) for name in SIGNS}


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
    for name in (schema.MARGIN_EXPLICIT, schema.MARGIN_IMPLICIT):
        stats = [report["margins"][group][name] for group in GROUPS]
        rows += [(f"{name} {number}", *(_number(of[number]) for of in stats)) for number in ("mean", "std")]
    signs = [report["signs"][group] for group in GROUPS]
    rows += [(label, *(_percent(of[sign]["share"]) for of in signs)) for sign, label in SIGNS.items()]
    rows.append(("threshold", "", _number(chosen["threshold"])))
    if chosen["num_tied"] != chosen["num_tied_kept"]:
        rows.append(("rows at the threshold", f"{chosen['num_tied']:,}", f"{chosen['num_tied_kept']:,}"))
    known = [row for row in rows if {*row[1:]} - {"", NOTHING}]
    parts = [_rule(chosen), _aligned([("", *GROUPS), *known])]
    parts += [_examples(f"{end} of all ranked rows", report[end]) for end in ("top", "bottom") if report[end]]
    return "\n\n".join(parts)


def _rule(chosen: Mapping[str, Any]) -> str:
    """The metric, the objective and how much is kept, in one line."""
    metric, objective, select = (chosen[name] for name in ("metric", "objective", "select"))
    name = metric["name"]
    terms = {
        "explicit": metric["explicit"],
        "implicit": metric["implicit"],
        "random": f"seed {select['seed']}",
        "potential": f"{metric['explicit']} explicit - {metric['weight']} x {metric['implicit']} implicit, "
        f"normalise {metric['normalise']}",
    }
    kept = f"k {select['k']:,}" if select["fraction"] is None else f"fraction {select['fraction']}"
    settings = "".join(f" {key} {value}" for key, value in objective.items() if key != "name")
    return f"metric {name} ({terms[name]}), objective {objective['name']}{settings}, {kept}"


def _examples(title: str, examples: Iterable[Mapping[str, Any]]) -> str:
    rows = [*examples]
    numbers = [f.name for f in schema.SUBSET_FIELDS if any(row[f.name] is not None for row in rows)]
    lines = [(str(row[schema.ID]), *(_number(row[name]) for name in numbers)) for row in rows]
    return _aligned([(title, *numbers), *lines])


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.2%}"


def _aligned(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )
