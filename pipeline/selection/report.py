"""What a selection kept, in numbers.

`summarise` gives a JSON-ready dict, `render` a table for the terminal. Like the selection itself, the numbers do not
depend on the order of the rows.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.selection.breakdown import MARGIN_RESIDUAL
from pipeline.selection.figures import figures
from pipeline.selection.fit import blocks_of, ranked_moments
from pipeline.selection.passes import Passes
from pipeline.selection.selection import Found
from pipeline.selection.source import Positions, Source, take_all
from pipeline.selection.text import aligned
from pipeline.selection.threshold import best, kth_largest
from pipeline.selection.view import rounded
from pipeline.shown import shown

GROUPS: Final = ("all", "selected")
NOTHING: Final = "-"
_BOUNDS: Final = (
    "fraction",
    "k",
    "min_score",
    "max_score",
    "max_length_ratio",
    "max_length_gap",
    "per_prompt",
    "group_by",
)
_DEFAULT_RULES: Final = {"labels": "keep", "deduplicate": "none", "disagreement": None, "order": "as_read"}
_JUDGE: Final[Mapping[str, str]] = {
    "flips": "the judge's orders disagree",
    "flips_for_first": "of these, for the first",
    "longer_wins": "the longer answer wins",
}
_CORRELATIONS: Final = {
    schema.MARGIN_EXPLICIT: "correlation of reward margin and length gap",
    MARGIN_RESIDUAL: "  without what length explains",
    schema.MARGIN_IMPLICIT: "correlation of implicit margin and length gap",
}
SIGNS: Final[Mapping[str, str]] = {
    "contradicted_by_reward": "reward prefers rejected",
    "contradicted_by_policy": "policy prefers rejected",
    "reward_against_policy": "reward and policy disagree",
}


def summarise(found: Found, source: Source, *, num_examples: int = 10, passes: Passes | None = None) -> dict[str, Any]:
    """Numbers of a selection, JSON-ready.

    selection: the rule and its counts. row_weights: of select.weights, if it is set. margins: count, mean and standard
    deviation of both margins, signed implicit, over all ranked rows and over the selected ones, where the columns hold
    values. signs: rows whose reward margin (chosen minus rejected, whatever metric.explicit is) or implicit margin is
    below zero, and rows where one is above zero and the other below. top, bottom: the ranked rows of highest and lowest
    score, ties by id. The rest is what `figures` counts. Labels are counted after select.labels has treated them.
    passes: what reads further columns.
    """
    selection, columns, scores = found.selection, found.columns, found.ranking.scores
    selected = np.zeros(columns.num_rows, dtype=np.bool_)
    selected[selection.positions] = True
    masks = dict(zip(GROUPS, (~np.isnan(scores), selected), strict=True))
    query = selection.query
    missing = np.broadcast_to(np.nan, columns.num_rows)
    explicit, implicit, reward = (
        columns.quantities.get(quantity, missing) for quantity in (query.explicit, query.implicit, query.signed)
    )
    margins = {schema.MARGIN_EXPLICIT: explicit, schema.MARGIN_IMPLICIT: implicit}
    absolute = {schema.MARGIN_EXPLICIT} if query.metric.explicit == "absolute" else set()

    def moments(name: str, rows: BoolArray) -> Mapping[str, Any]:
        values = margins[name]
        return ranked_moments(values, rows & np.isfinite(values), absolute=name in absolute).to_dict()

    def examples(sign: int) -> list[dict[str, Any]]:
        found = _examples_of(source, scores, margins, num_examples, sign=sign)
        for example in found:
            example |= {name: abs(example[name]) for name in absolute if example[name] is not None}
        return found

    return {
        "selection": selection.to_dict(),
        "margins": {group: {name: dict(moments(name, rows)) for name in margins} for group, rows in masks.items()},
        **({} if selection.weights is None else {"row_weights": _row_weights(selection.weights)}),
        "signs": {group: _signs(reward, implicit, rows) for group, rows in masks.items()},
        "top": examples(1),
        "bottom": examples(-1),
        **figures(found, source, passes),
    }


def _row_weights(weights: FloatArray) -> dict[str, float | None]:
    low, middle, high = np.quantile(weights, [0, 0.5, 1], method="inverted_cdf").tolist()
    return {"lowest": rounded(low), "median": rounded(middle), "highest": rounded(high)}


def _signs(reward: FloatArray, implicit: FloatArray, rows: BoolArray) -> dict[str, Any]:
    counts = np.zeros((len(SIGNS), 2), dtype=np.int64)
    for block in blocks_of(rows.size):
        e, i = reward[block][rows[block]], implicit[block][rows[block]]
        with np.errstate(invalid="ignore"):
            below = (e < 0, i < 0, (e < 0) & (i > 0) | (e > 0) & (i < 0))
        known = (~np.isnan(e), ~np.isnan(i), ~np.isnan(e) & ~np.isnan(i))
        counts += [[np.count_nonzero(mask) for mask in masks] for masks in zip(below, known, strict=True)]
    return {name: _share(count, of) for name, (count, of) in zip(SIGNS, counts.tolist(), strict=True)}


def _examples_of(
    source: Source, scores: FloatArray, margins: Mapping[str, FloatArray], num: int, *, sign: int
) -> list[dict[str, Any]]:
    """The rows of highest sign * score, ties by id: id, margins and score."""
    if num == 0:
        return []

    def ids_at(positions: Positions) -> pa.Array:
        return take_all(source, positions, [schema.ID]).column(schema.ID).combine_chunks()

    num_ranked = int(np.count_nonzero(~np.isnan(scores)))
    num = min(num, num_ranked)
    if sign > 0:
        rows = np.flatnonzero(scores >= kth_largest(scores, num))
    else:
        rows = np.flatnonzero(scores <= kth_largest(scores, num_ranked - num + 1))
    rows = rows[best(sign * scores[rows], num, lambda places: ids_at(rows[places]))[0]]
    ids = ids_at(rows).to_pylist()
    order = sorted(range(num), key=lambda i: (-sign * scores[rows[i]], ids[i]))
    return [
        {
            schema.ID: ids[i],
            **{name: _known(values[rows[i]]) for name, values in margins.items()},
            schema.POTENTIAL: _known(scores[rows[i]]),
        }
        for i in order
    ]


def _known(value: float) -> float | None:
    return float(value) + 0.0 if math.isfinite(value) else None


def _share(count: int, num_rows: int) -> dict[str, int | float | None]:
    return {"count": count, "of": num_rows, "share": count / num_rows if num_rows else None}


def render(report: Mapping[str, Any]) -> str:
    """The report of `summarise` as a table for the terminal; numbers that nothing gives are left out."""
    chosen = report["selection"]
    disagreed, passed_over = chosen.get("num_disagreed"), chosen.get("num_passed_over") or 0
    rows: list[tuple[str, ...]] = [
        ("rows scored", f"{chosen['num_rows'] - (chosen.get('num_skipped') or 0) - passed_over:,}", ""),
        *([("rows skipped", f"{skipped:,}", "")] if (skipped := chosen.get("num_skipped")) else []),
        *(
            [("rows passed over by score.proxy", f"{passed_over:,}", "the subset is approximate")]
            if passed_over
            else []
        ),
        *((f"  {reason}", f"{count:,}", "") for reason, count in chosen["excluded"].items() if count),
        *([("rows on which judges disagree", f"{disagreed:,}", "")] if disagreed is not None else []),
        ("rows ranked and selected", f"{chosen['num_ranked']:,}", f"{chosen['k']:,}"),
    ]
    for name, cut in (chosen["groups"] or {}).items():
        rows.append((f"  {chosen['select']['group_by']} {name}", f"{cut['num_candidates']:,}", f"{cut['k']:,}"))
    rows += [(f"  split {name}", "", f"{num_rows:,}") for name, num_rows in chosen.get("splits", {}).items()]
    for name in (schema.MARGIN_EXPLICIT, schema.MARGIN_IMPLICIT):
        stats = [report["margins"][group][name] for group in GROUPS]
        rows += [(f"{name} {number}", *(_number(of[number]) for of in stats)) for number in ("mean", "std")]
    signs = [report["signs"][group] for group in GROUPS]
    rows += [(label, *(_percent(of[sign]["share"]) for of in signs)) for sign, label in SIGNS.items()]
    for name, judge in report.get("judges", {}).items():
        rows += [
            (f"{name}: {words}", *(_percent(judge[g][key]["share"]) for g in GROUPS)) for key, words in _JUDGE.items()
        ]
    if report.get("lengths"):
        lengths = [report["lengths"][group] for group in GROUPS]
        rows.append(("chosen is longer", *(_percent(of["chosen_longer"]["share"]) for of in lengths)))
        for name, label in _CORRELATIONS.items():
            rows.append((label, *(_number(of["correlation"].get(name)) for of in lengths)))
    with_label = report.get("rewards", {}).get("with_label", {})
    rows += [(f"reward {name} prefers chosen", _percent(of["share"]), "") for name, of in with_label.items()]
    if chosen["select"]["labels"] == "swap":
        rows.append(("labels swapped", f"{chosen['num_contradicted']:,}", ""))
    rows.append(("threshold", "", _number(chosen.get("threshold"))))
    if chosen.get("num_tied") != chosen.get("num_tied_kept"):
        rows.append(("rows at the threshold", f"{chosen['num_tied']:,}", f"{chosen['num_tied_kept']:,}"))
    known = [row for row in rows if {*row[1:]} - {"", NOTHING}]
    parts = [rule_in_words(chosen), aligned([("", *GROUPS), *known])]
    parts += [_examples(f"{end} of all ranked rows", report[end]) for end in ("top", "bottom") if report[end]]
    return "\n\n".join(parts)


def rule_in_words(chosen: Mapping[str, Any]) -> str:
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
        for key in _BOUNDS
        if (value := select.get(key)) is not None
    ]
    kept += [f"band of {term} {low:g} to {high:g}" for term, (low, high) in (select.get("band") or {}).items()]
    kept += ["weights"] if select.get("weights") else []
    kept += [f"at least {select['agreement']['at_least']} rewards agree"] if select.get("agreement") else []
    kept += [f"{key} {select[key]}" for key, default in _DEFAULT_RULES.items() if select.get(key, default) != default]
    parameters = "".join(f" {key} {value}" for key, value in objective.items() if key != "name")
    under = f"objective {objective['name']}{parameters}"
    of_metric = f"metric {name}" + (f" ({settings[name]})" if name in settings else "")
    combine = metric.get("combine")
    if combine is not None:
        each = (
            combine["members"]
            if combine["weights"] is None
            else [f"{w:g} x {m}" for m, w in combine["weights"].items()]
        )
        of_metric += f", {combine['rule']} of rewards {', '.join(each)} (normalise {combine['normalise']})"
    length = [f"length {metric['length']}"] if "length" in chosen["fitted"] else []
    return ", ".join([of_metric, under, *length, *kept])


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
