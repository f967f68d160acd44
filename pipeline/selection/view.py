"""The rows of a selection as figures look at them: who is ranked, who is selected, and their margins."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.selection.fit import drawn
from pipeline.selection.selection import Found
from pipeline.selection.source import Positions

SAMPLED_ROWS: Final = 2**16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """Every array is [num_rows], but for the sample.

    reward: signed explicit margin, whatever metric.explicit is. explicit: the explicit margin as the report shows it.
    Margins without columns are NaN. sample: places of ranked rows in order of the hashes of their ids, all of a set of
    up to SAMPLED_ROWS; joint numbers are taken on it, so that they do not depend on the order of rows.
    """

    found: Found
    ranked: BoolArray
    selected: BoolArray
    reward: FloatArray
    explicit: FloatArray
    implicit: FloatArray
    scores: FloatArray
    sample: Positions

    @classmethod
    def of(cls, found: Found) -> "View":
        """The view of a selection."""
        columns, scores, query = found.columns, found.ranking.scores, found.selection.query
        ranked = ~np.isnan(scores)
        selected = np.zeros(columns.num_rows, dtype=np.bool_)
        selected[found.selection.positions] = True
        missing = np.broadcast_to(np.nan, columns.num_rows)
        reward, explicit, implicit = (
            columns.quantities.get(quantity, missing) for quantity in (query.signed, query.explicit, query.implicit)
        )
        sample = np.flatnonzero(drawn(columns.hashes, ranked, SAMPLED_ROWS))
        return cls(
            found=found,
            ranked=ranked,
            selected=selected,
            reward=reward,
            explicit=np.abs(explicit) if query.metric.explicit == "absolute" else explicit,
            implicit=implicit,
            scores=scores,
            sample=sample[np.argsort(columns.hashes[sample], kind="stable")],
        )

    @property
    def groups(self) -> dict[str, BoolArray]:
        """The rows that each number is given for."""
        return {"all": self.ranked, "selected": self.selected}


def rounded(value: float) -> float | None:
    """Six digits, which no order of additions moves; None for NaN and infinity."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def share(count: int, of: int) -> dict[str, Any]:
    """A count, what it is a part of, and the share."""
    return {"count": count, "of": of, "share": count / of if of else None}
