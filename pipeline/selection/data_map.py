"""Where prompts stand by the rewards of all their candidates: high or low on average, alike or unlike."""

from typing import Any

import numpy as np

from pipeline import schema
from pipeline.metrics.margins import candidates_mean, candidates_variance
from pipeline.metrics.moments import exact_mean
from pipeline.selection.plane import Hexagons, picture_range
from pipeline.selection.source import Source, take_all
from pipeline.selection.view import View, rounded


def data_map(view: View, source: Source) -> dict[str, Any] | None:
    """Mean and variance of the rewards of all candidates, on the sampled rows; None if no row has any.

    mean, variance: ranges of the picture. means: of both numbers. cells, outside: as in `plane`.
    """
    if schema.REWARDS_ALL not in source.schema.names or not source.has_values(schema.REWARDS_ALL):
        return None
    places = np.sort(view.sample)
    table = take_all(source, places, [schema.REWARDS_ALL])
    mean, variance = candidates_mean(table), candidates_variance(table)
    known = np.isfinite(mean) & np.isfinite(variance)
    if not known.any():
        return None
    groups = {"all": known, "selected": known & view.selected[places]}
    ranges = picture_range(mean[known], zero=False), picture_range(variance[known], zero=True)
    counted = Hexagons(ranges)
    for group, rows in enumerate(groups.values()):
        counted.add(group, mean[rows], variance[rows])
    return {
        "count": {group: int(np.count_nonzero(rows)) for group, rows in groups.items()},
        "means": {
            group: {"mean": rounded(exact_mean(mean[rows])), "variance": rounded(exact_mean(variance[rows]))}
            for group, rows in groups.items()
        },
        "mean": ranges[0],
        "variance": ranges[1],
        **counted.to_dict(groups),
    }
