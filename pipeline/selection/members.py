"""How far several rewards of the pairs agree, with each other and with the label."""

from typing import Any

import numpy as np

from pipeline.selection.fit import blocks_of
from pipeline.selection.view import View, rounded, share


def rewards_side_by_side(view: View) -> dict[str, Any]:
    """JSON-ready, under `rewards`; empty if there is one reward.

    correlation: of the margins of each two rewards, on the sampled rows; null where one never differs. with_label:
    ranked pairs of which a reward gives chosen more than rejected.
    """
    query, columns = view.found.selection.query, view.found.columns
    if query.metric.combine is None:
        return {}
    margins = {quantity.rewards[0]: columns.quantities[quantity] for quantity in query.signed.parts}
    sample = np.stack([values[view.sample] for values in margins.values()])
    sample = sample[:, np.isfinite(sample).all(axis=0)]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (
            np.atleast_2d(np.corrcoef(sample)) if sample.shape[1] > 1 else np.full((len(margins),) * 2, np.nan)
        )
    agreeing = {
        name: sum(int(np.count_nonzero(values[rows][view.ranked[rows]] > 0)) for rows in blocks_of(values.size))
        for name, values in margins.items()
    }
    num_ranked = int(np.count_nonzero(view.ranked))
    return {
        "rewards": {
            "correlation": {
                name: dict(zip(margins, map(rounded, line), strict=True))
                for name, line in zip(margins, correlation.tolist(), strict=True)
            },
            "with_label": {name: share(count, num_ranked) for name, count in agreeing.items()},
        }
    }
