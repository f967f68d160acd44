"""What other metrics and other weights would select, on the sampled rows: the same rows for any order and partition.

The rules beyond the number of rows are left out, so a subset made with quotas or limits differs a little from what its
own metric ranks first.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np

from pipeline.config import Metric
from pipeline.errors import DataError
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.moments import exact_mean
from pipeline.metrics.normalise import Fitted
from pipeline.metrics.ranker import Quantity, Ranker
from pipeline.selection.compare import Comparison, compare_scores
from pipeline.selection.fit import fit
from pipeline.selection.view import View, rounded, share

WEIGHTS: Final = tuple(step / 4 for step in range(17))
THIS: Final = "this subset"
_METRICS: Final = ("potential", "explicit", "implicit", "bees-add", "random")


def metrics_side_by_side(view: View) -> dict[str, Any] | None:
    """The subset beside what the usual metrics would keep of as many rows; None if no other can be computed."""
    query = view.found.selection.query
    own = query.metric.name
    scores = {own: view.scores[view.sample]}
    for name in _METRICS:
        if name != own and (found := _scores(view, name)) is not None:
            scores[name] = found
    if len(scores) == 1 or view.sample.size < 2:
        return None
    kept = _kept_share(view)
    compared = compare_scores(scores, {THIS: (own, view.selected[view.sample])}, kept)
    return {**_short(compared), "overlap_by_chance": rounded(float(kept / (2 - kept)))}


def weights_side_by_side(view: View, gap: FloatArray) -> dict[str, Any] | None:
    """What the potential would keep at each of WEIGHTS, as numbers by weight; None if a margin is not there.

    gap: tokens of chosen minus rejected, of the rows of the sample.
    """
    metric = view.found.selection.query.metric
    weighted = metric.name == "potential" and metric.weight != 0
    base = metric if metric.name == "potential" else Metric(combine=metric.combine)
    ready = _Ready.of(view, base.model_copy(update={"weight": 1.0}))
    if ready is None:
        return None
    fitted = view.found.ranking.fitted if weighted else ready.fitted
    rows = []
    for weight in WEIGHTS:
        ranker = replace(ready.ranker, metric=base.model_copy(update={"weight": weight}))
        kept = _best(ranker.score(ready.quantities, fitted), _num_kept(view))
        rows.append({"weight": weight, **_about(view, kept, gap)})
    return {"rows": rows, "this": _about(view, view.selected[view.sample], gap)}


def _about(view: View, kept: BoolArray, gap: FloatArray) -> dict[str, Any]:
    ours, rows = view.selected[view.sample], view.sample[kept]
    reward, implicit, lengths = view.reward[rows], view.implicit[rows], gap[kept]
    lengths = lengths[np.isfinite(lengths)]
    either = int(np.count_nonzero(ours | kept))
    return {
        "overlap": share(int(np.count_nonzero(ours & kept)), either)["share"],
        "margin_explicit": rounded(exact_mean(reward[np.isfinite(reward)])),
        "margin_implicit": rounded(exact_mean(implicit[np.isfinite(implicit)])),
        "contradicted_by_reward": share(int(np.count_nonzero(reward < 0)), rows.size)["share"],
        "contradicted_by_policy": share(int(np.count_nonzero(implicit < 0)), rows.size)["share"],
        "chosen_longer": share(int(np.count_nonzero(lengths > 0)), lengths.size)["share"],
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ready:
    """A metric fitted to the sampled rows, and its quantities of them."""

    ranker: Ranker
    quantities: dict[Quantity, FloatArray]
    fitted: Fitted

    @classmethod
    def of(cls, view: View, metric: Metric) -> "_Ready | None":
        """None if the metric cannot be computed for each of the rows."""
        query, columns = view.found.selection.query, view.found.columns
        ranker = Ranker(objective=query.objective, metric=metric, seed=query.rule.seed)
        wanted = {ranker.quantity(term) for term in (*ranker.terms, *ranker.sampled_terms)}
        if not wanted <= columns.quantities.keys():
            return None
        quantities = {quantity: columns.quantities[quantity][view.sample] for quantity in wanted}
        if not all(np.isfinite(values).all() for values in quantities.values()):
            return None
        every = np.ones(view.sample.size, dtype=np.bool_)
        try:
            fitted = fit(ranker, quantities, every, columns.hashes[view.sample])
        except DataError:
            return None  # a margin without spread: such a metric ranks nothing
        return cls(ranker=ranker, quantities=quantities, fitted=fitted)


def _scores(view: View, name: str) -> FloatArray | None:
    if name == "random":
        # A hash of the hash of the id, which is not held.
        hashes = view.found.columns.hashes[view.sample] * np.uint64(0x9E3779B97F4A7C15)
        return (hashes >> np.uint64(11)).astype(np.float64)
    ready = _Ready.of(view, Metric(name=name, combine=view.found.selection.query.metric.combine))
    return None if ready is None else ready.ranker.score(ready.quantities, ready.fitted)


def _kept_share(view: View) -> Fraction:
    return Fraction(_num_kept(view), view.sample.size)


def _num_kept(view: View) -> int:
    return int(np.count_nonzero(view.selected[view.sample]))


def _best(scores: FloatArray, num: int) -> BoolArray:
    """The best rows; rows of the sample stand in order of their hashes, so ties are cut alike in any order."""
    kept = np.zeros(scores.size, dtype=np.bool_)
    kept[np.argsort(-scores, kind="stable")[:num]] = True
    return kept


def _short(compared: Comparison) -> dict[str, Any]:
    found = compared.to_dict()
    for name in ("overlap", "rank_correlation", "contradiction"):
        found[name] = {
            row: {column: None if value is None else rounded(value) for column, value in line.items()}
            for row, line in found[name].items()
        }
    return found
