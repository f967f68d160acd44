"""How likely the label of a pair is wrong, by both margins.

A share of the labels, the rate, is taken to be wrong: there chosen and rejected are exchanged. Of the two responses the
better one has the larger margin with the odds of Bradley and Terry, so that

    P(this label) = (1 - rate) * sigmoid(m) + rate * sigmoid(-m),   m = sum of weight * margin

Rate and weights are those of the largest likelihood, found together by expectation maximisation; then log-odds that a
label is right are m + log((1 - rate) / rate). Models that were trained on these labels find too few wrong ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.errors import DataError
from pipeline.metrics.calibration import log_odds_weight
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.moments import Moments, moments_of
from pipeline.selection.fit import blocks_of
from pipeline.selection.source import Positions, Source, take_all
from pipeline.selection.view import View, rounded

LEVELS: Final = (0.5, 0.8, 0.9, 0.95)
PROBABILITY: Final = "probability_wrong"
REASONS: Final = "reasons"
_TEXTS: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
_SHOWN: Final = 10
_FITTED_ROWS: Final = 2**14
_STEPS: Final = 150
_PRIOR: Final = (1.0, 20.0)  # wrong labels among so many, as if seen before: 5%, worth 20 rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrongLabels:
    """rate: of wrong labels. weights: by margin, of which each is float64 [num_rows]."""

    rate: float
    weights: Mapping[str, float]
    margins: Mapping[str, FloatArray]

    @classmethod
    def of(cls, view: View) -> "WrongLabels":
        """Fitted to sampled rows.

        Raises:
            DataError: no margin is there, or the margins are against the labels in sum.
        """
        rewards = rewards_of(view)
        by_reward = rewards if len(rewards) > 1 else {schema.MARGIN_EXPLICIT: view.reward}
        margins = {**by_reward, schema.MARGIN_IMPLICIT: view.implicit}
        margins = {name: margin for name, margin in margins.items() if np.isfinite(margin[view.sample]).any()}
        if not margins:
            raise DataError("no pair has a margin of the reward or of the policy. Run one of these models.")
        sample = np.stack([margin[view.sample] for margin in margins.values()])
        rate, weights = _fitted(sample[:, np.isfinite(sample).all(axis=0)][:, :_FITTED_ROWS])
        return cls(rate=rate, weights=dict(zip(margins, weights, strict=True)), margins=margins)

    def log_odds(self, rows: slice) -> FloatArray:
        """That the labels of these rows are right; NaN where a margin is not there."""
        prior = math.log((1 - self.rate) / self.rate)
        with np.errstate(invalid="ignore", over="ignore"):
            return sum((self.weights[name] * margin[rows] for name, margin in self.margins.items()), np.array(prior))


def _fitted(margins: FloatArray) -> tuple[float, list[float]]:
    """Rate and weights by margins, [num_margins, num_rows]: expectations, then a step of Newton's on the weights.

    A prior worth a few rows, on the rate and on weights of margins scaled to 1, keeps them finite where no label is
    contradicted.
    """
    num_margins, num_rows = margins.shape
    largest = np.abs(margins).max(axis=1, initial=0.0)
    largest[largest == 0] = 1.0
    spread = largest * np.sqrt(((margins / largest[:, None]) ** 2).mean(axis=1)) if num_rows else largest
    scaled = margins / np.where(spread > 0, spread, 1.0)[:, None]
    rate, weights = _PRIOR[0] / _PRIOR[1], np.ones(num_margins)
    for _ in range(_STEPS):
        odds = (weights[:, None] * scaled).sum(axis=0)
        wrong = log_odds_weight(odds + math.log((1 - rate) / rate))
        rate = (float(wrong.sum()) + _PRIOR[0]) / (num_rows + _PRIOR[1])
        right = log_odds_weight(-odds)
        slope = (scaled * (1 - wrong - right)).sum(axis=1) - weights
        curve: npt.NDArray[np.float64] = np.eye(num_margins)
        for i in range(num_margins):
            for j in range(num_margins):
                curve[i, j] += float((scaled[i] * scaled[j] * right * (1 - right)).sum())
        weights = weights + np.clip(np.linalg.solve(curve, slope), -1.0, 1.0)
    if rate >= 0.5 or weights.max() <= 0:
        raise DataError(
            f"the margins are against the labels in sum in {num_rows} rows, so they cannot say which labels are wrong. "
            "Check that chosen and rejected are not swapped."
        )
    with np.errstate(over="ignore"):
        weights = weights / np.where(spread > 0, spread, 1.0)
    if not np.isfinite(weights).all():
        raise DataError("the margins are too small for a double to hold their weight. Rescale the rewards.")
    return rate, weights.tolist()


def rewards_of(view: View) -> dict[str, FloatArray]:
    """The margin of each of several rewards, by name; nothing if there is one."""
    query, quantities = view.found.selection.query, view.found.columns.quantities
    if query.metric.combine is None:
        return {}
    return {f"reward {part.rewards[0]}": quantities[part] for part in query.signed.parts}


def label_audit(view: View, source: Source) -> dict[str, Any]:
    """Expected share of wrong labels, how many are likely wrong, and the most likely ones; or why that is unknown."""
    try:
        found = WrongLabels.of(view)
    except DataError as error:
        return {"unknown": str(error)}
    groups: dict[str, Any] = {}
    for name, rows in view.groups.items():
        total, above = Moments(), np.zeros(len(LEVELS), dtype=np.int64)
        for block in blocks_of(rows.size):
            odds = found.log_odds(block)[rows[block]]
            odds = odds[np.isfinite(odds)]
            total += moments_of(log_odds_weight(odds), squares=False)
            above += [np.count_nonzero(odds < -math.log(level / (1 - level))) for level in LEVELS]
        groups[name] = {
            "count": total.count,
            "expected_share": rounded(total.mean()),
            "above": dict(zip(map(str, LEVELS), above.tolist(), strict=True)),
        }
    weights = {name: rounded(weight) for name, weight in found.weights.items()}
    return {"rate": rounded(found.rate), "weights": weights, **groups, "likeliest": _likeliest(view, source, found)}


def suspicious_pairs(view: View, source: Source, *, above: float, text: bool) -> pa.Table:
    """The ranked pairs whose label is wrong with a probability above this one, most likely first, ties by id.

    Columns: id, probability_wrong, reasons, margin_explicit (signed), margin_implicit; with `text` what they say.

    Raises:
        DataError: the labels cannot be judged by these margins.
    """
    odds = WrongLabels.of(view).log_odds(slice(None))
    wrong = np.full(odds.size, -1.0)
    known = view.ranked & np.isfinite(odds)
    wrong[known] = log_odds_weight(odds[known])
    rows = np.flatnonzero(wrong > above)
    return _named(view, source, rows, wrong[rows], text=text)


def _likeliest(view: View, source: Source, found: WrongLabels) -> list[dict[str, Any]]:
    """The first of `suspicious_pairs` that are more likely wrong than right; which of equal ones, the hashes decide."""
    rows, odds = [], []
    for block in blocks_of(view.ranked.size):
        of_block = found.log_odds(block)
        there = np.flatnonzero(view.ranked[block] & (of_block < 0))
        rows.append(there + block.start)
        odds.append(of_block[there])
    places, lowest = np.concatenate(rows), np.concatenate(odds)
    first = np.lexsort([view.found.columns.hashes[places], lowest])[:_SHOWN]
    if not first.size:
        return []
    first = first[np.argsort(places[first])]
    named = _named(view, source, places[first], log_odds_weight(lowest[first]), text=False)
    numbers = (PROBABILITY, schema.MARGIN_EXPLICIT, schema.MARGIN_IMPLICIT)
    return [
        {**row, **{name: rounded(row[name]) for name in numbers if row[name] is not None}} for row in named.to_pylist()
    ]


def _named(view: View, source: Source, rows: Positions, wrong: FloatArray, *, text: bool) -> pa.Table:
    """Rows at ascending places, with these probabilities of a wrong label, as `suspicious_pairs` gives them."""
    taken = take_all(source, rows, [schema.ID, *(_TEXTS if text else ())])
    rewards = rewards_of(view)
    margins = {**(rewards if len(rewards) > 1 else {"reward": view.reward}), "policy": view.implicit}
    against = {f"{name} prefers rejected": margin[rows] < 0 for name, margin in margins.items()}
    reasons = [
        "; ".join(name for name, holds in zip(against, each, strict=True) if holds)
        for each in zip(*(holds.tolist() for holds in against.values()), strict=True)
    ]
    columns = {
        schema.ID: taken.column(schema.ID),
        PROBABILITY: pa.array(wrong),
        REASONS: pa.array(reasons, pa.string()),
        schema.MARGIN_EXPLICIT: pa.array(view.reward[rows], from_pandas=True),
        schema.MARGIN_IMPLICIT: pa.array(view.implicit[rows], from_pandas=True),
        **{name: taken.column(name) for name in (_TEXTS if text else ())},
    }
    return pa.table(columns).sort_by([(PROBABILITY, "descending"), (schema.ID, "ascending")])
