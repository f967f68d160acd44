"""How far the policy is with the pairs before any training: which ones its objective would still move."""

from typing import Any

import numpy as np

from pipeline.selection.fit import blocks_of
from pipeline.selection.view import View, share


def reach(view: View) -> dict[str, Any] | None:
    """Pairs by their implicit margin, of all ranked and of the selected ones; None if no pair has one.

    reversed: below 0, the policy prefers rejected. below_target: from 0 to under the target margin of the objective's
    loss, if that has one. done: at or above it. target: the target margin, or null.
    """
    target = view.found.selection.query.objective.target
    edges = [0.0] if target is None else [0.0, target]
    names = ("reversed", "done") if target is None else ("reversed", "below_target", "done")
    found: dict[str, Any] = {"target": target}
    for group, rows in view.groups.items():
        counts = np.zeros(len(names), dtype=np.int64)
        for block in blocks_of(rows.size):
            margins = view.implicit[block][rows[block]]
            places = np.searchsorted(edges, margins[np.isfinite(margins)], side="right")
            counts += np.bincount(places, minlength=len(names))
        total = int(counts.sum())
        found[group] = {name: share(count, total) for name, count in zip(names, counts.tolist(), strict=True)}
    return found if found["all"]["done"]["of"] else None
