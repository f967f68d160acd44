"""How high the score of a row can be while its implicit margin is not known.

    potential = z(e) - w z(|i|),  z(v) = (v - center) / spread,  w >= 0,  spread > 0

It falls as |i| rises, and |i| >= 0. So it is at most z(e) - w z(0), the potential at an implicit margin of 0: with
z-scores, z(e) + w mean|i| / std|i|. The bound is computed by the formula of the score. Each operation of it rounds
monotonically, so that no score is above its bound, not by a rounding either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pipeline.config import Metric


BANDS_NEED_ALL: Final = "select.band takes quantiles of what skipped rows do not have: leave it out"
"""Why a selection by bands needs the scores of all rows."""


def why_no_bound(metric: Metric) -> str | None:
    """Why the scores of a metric have no bound without the implicit margin; None if they have, or do not read it."""
    if not metric.reads_implicit:
        return None
    if metric.name != "potential":
        return f"metric {metric.name} may give any row the highest score: use metric potential"
    if metric.implicit == "signed":
        return "a signed implicit margin may be as far below 0 as it likes: set metric.implicit: absolute"
    if metric.normalise == "rank":
        return "ranks need the implicit margin of every row: set metric.normalise: zscore, robust or none"
    return None
