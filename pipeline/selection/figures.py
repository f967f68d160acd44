"""What the pictures of a report are drawn from: counts in bins and a few numbers, small for any number of rows."""

from typing import Any, Final

from pipeline.selection.alternatives import metrics_side_by_side, weights_side_by_side
from pipeline.selection.breakdown import breakdown
from pipeline.selection.data_map import data_map
from pipeline.selection.members import rewards_side_by_side
from pipeline.selection.passes import Passes, Threads
from pipeline.selection.plane import histograms, plane
from pipeline.selection.reach import reach
from pipeline.selection.rules import (
    BEYOND_PROMPT_CAP,
    NO_GROUP,
    NO_QUOTA,
    OUTSIDE_BAND,
    OUTSIDE_LENGTHS,
    OUTSIDE_QUANTILES,
    SIMILAR,
)
from pipeline.selection.selection import Found
from pipeline.selection.source import Source
from pipeline.selection.view import View
from pipeline.selection.wrong_labels import label_audit

_BY_RULE: Final = frozenset(
    {BEYOND_PROMPT_CAP, NO_GROUP, NO_QUOTA, OUTSIDE_BAND, OUTSIDE_LENGTHS, OUTSIDE_QUANTILES, SIMILAR}
)


def figures(found: Found, source: Source, passes: Passes | None = None) -> dict[str, Any]:
    """JSON-ready. Counts are exact over all rows; `num_sampled` rows give correlations and other choices.

    flow: rows from the scored ones to the selected ones, and what left them out on the way.
    """
    view = View.of(found)
    lengths, gap = breakdown(view, source, passes if passes is not None else Threads())
    return {
        "flow": _flow(found),
        "num_sampled": int(view.sample.size),
        "plane": plane(view),
        "histograms": histograms(view),
        **lengths,
        "metrics": metrics_side_by_side(view),
        "weights": weights_side_by_side(view, gap),
        "label_audit": label_audit(view, source),
        "reach": reach(view),
        "data_map": data_map(view, source),
        **rewards_side_by_side(view),
    }


def _flow(found: Found) -> dict[str, Any]:
    selection = found.selection
    by_rule = {reason: count for reason, count in selection.excluded.items() if reason in _BY_RULE and count}
    return {
        "scored": selection.num_rows,
        "not_ranked": {
            reason: count for reason, count in selection.excluded.items() if reason not in _BY_RULE and count
        },
        "ranked": selection.num_ranked,
        "left_out_by_rule": by_rule,
        "ranked_lower": selection.num_ranked - sum(by_rule.values()) - selection.k,
        "selected": selection.k,
    }
