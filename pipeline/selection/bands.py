"""The bands of select.band: rows whose terms lie between two quantiles of all ranked rows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.ranker import LENGTH_GAP, Quantities, Quantity

if TYPE_CHECKING:
    from pipeline.selection.ranking import Query

_SCORE: Final = "score"


def band_quantities(query: "Query") -> dict[str, Quantity]:
    """What the bands of a query look at beside the score, by term."""
    quantities = {
        "explicit": query.explicit,
        "implicit": query.implicit,
        "implicit_abs": query.implicit,
        "length_gap": LENGTH_GAP,
    }
    return {term: quantities[term] for term in query.rule.band or {} if term != _SCORE}


def fit_bands(query: "Query", quantities: Quantities, scores: FloatArray) -> dict[str, tuple[float, float]]:
    """The lowest and the highest value inside each band. A quantile is a value of some row, so it can be found again.

    scores: NaN where a row is not ranked.

    Raises:
        DataError: no ranked row has a value of a term.
    """
    ranked = ~np.isnan(scores)
    found: dict[str, tuple[float, float]] = {}
    for term, quantiles in (query.rule.band or {}).items():
        values = _values(query, term, quantities, scores)[ranked]
        values = values[np.isfinite(values)]
        if not values.size:
            raise DataError(f"select.band {term}: none of {np.count_nonzero(ranked)} ranked rows has it. Leave it out.")
        low, high = np.quantile(values, quantiles, method="inverted_cdf").tolist()
        found[term] = low, high
    return found


def inside_band(
    query: "Query", term: str, bounds: Mapping[str, tuple[float, float]], quantities: Quantities, scores: FloatArray
) -> BoolArray:
    """The rows inside a band, both ends included; a row without the term is outside."""
    values, (low, high) = _values(query, term, quantities, scores), bounds[term]
    with np.errstate(invalid="ignore"):
        inside: BoolArray = (values >= low) & (values <= high)
    return inside


def _values(query: "Query", term: str, quantities: Quantities, scores: FloatArray) -> FloatArray:
    if term == _SCORE:
        return scores
    values = quantities[band_quantities(query)[term]]
    absolute = term == "implicit_abs" or (term == "explicit" and query.metric.explicit == "absolute")
    return np.abs(values) if absolute else values
