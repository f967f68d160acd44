"""How likely the label of a pair is wrong, by both margins.

Each margin is put on the log-odds of the labels by the Bradley-Terry model (`metrics.calibration`); their sum is put
there once more, because they are not independent. P(the label is wrong) = sigmoid(-that). It is calibrated on the
labels themselves: a policy or reward model that was trained on them finds too few.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline import schema
from pipeline.errors import DataError
from pipeline.metrics.calibration import log_odds_weight, preference_scale
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.moments import exact_mean
from pipeline.selection.view import View, rounded

_SMOOTHING: Final = 0.01
LEVELS: Final = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrongLabels:
    """scales: by margin, and of the sum. log_odds: that the label is right, float64 [num_rows]; NaN where unknown."""

    scales: dict[str, float]
    log_odds: FloatArray

    @classmethod
    def of(cls, view: View) -> "WrongLabels":
        """Fitted to the sampled rows.

        Raises:
            DataError: no margin is there, or the margins are against the labels in sum.
        """
        margins = {schema.MARGIN_EXPLICIT: view.reward, schema.MARGIN_IMPLICIT: view.implicit}
        scales: dict[str, float] = {}
        total = np.zeros(view.scores.size)
        for name, margin in margins.items():
            sample = margin[view.sample]
            sample = sample[np.isfinite(sample)]
            if sample.size:
                scales[name] = preference_scale(sample, name=name, smoothing=_SMOOTHING)
                total += scales[name] * margin
        if not scales:
            raise DataError("neither margin is there")
        sample = total[view.sample]
        scales["sum"] = preference_scale(sample[np.isfinite(sample)], name="the sum", smoothing=_SMOOTHING)
        return cls(scales=scales, log_odds=scales["sum"] * total)

    @property
    def probability(self) -> FloatArray:
        """P(the label is wrong), NaN where unknown."""
        wrong: FloatArray = np.full(self.log_odds.size, np.nan)
        known = np.isfinite(self.log_odds)
        wrong[known] = log_odds_weight(self.log_odds[known])
        return wrong


def label_audit(view: View) -> dict[str, Any]:
    """Expected share of wrong labels, and how many are likely wrong; or why that cannot be said."""
    try:
        found = WrongLabels.of(view)
    except DataError as error:
        return {"unknown": str(error)}
    wrong = found.probability
    groups = {}
    for name, rows in view.groups.items():
        known = rows & np.isfinite(wrong)
        groups[name] = {
            "count": int(np.count_nonzero(known)),
            "expected_share": rounded(exact_mean(wrong[known])),
            "above": {
                str(level): int(np.count_nonzero(found.log_odds[known] < -math.log(level / (1 - level))))
                for level in LEVELS
            },
        }
    return {"scales": {name: rounded(scale) for name, scale in found.scales.items()}, **groups}
