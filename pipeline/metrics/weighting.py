"""How much each chosen pair counts in training: a smooth function of its score.

    weight = sigmoid(z) / mean(sigmoid(z)),   z = (score - center) / spread

center and spread (mean and standard deviation of the score) and the mean of the sigmoids are taken over the chosen
rows. So weights are 1 on average, which leaves the size of a training step as it was. The mean of the sigmoids is near
a half, so weights lie between 0 and some 2. Equal scores give weights of 1.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pipeline.metrics.calibration import log_odds_weight
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.moments import exact_mean, moments_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """The three numbers that weights depend on besides the score."""

    center: float
    spread: float
    mean: float

    @classmethod
    def of(cls, scores: FloatArray) -> "Weighting":
        """Taken from the scores of the chosen rows, finite, whatever their order."""
        moments = moments_of(scores)
        center, spread = moments.mean(), moments.std() or 1.0
        return cls(center=center, spread=spread, mean=exact_mean(log_odds_weight((center - scores) / spread)))

    @classmethod
    def from_dict(cls, value: Mapping[str, float]) -> "Weighting":
        """What `to_dict` wrote. Raises a KeyError, TypeError or ValueError if it is damaged."""
        return cls(**{name: float(value[name]) for name in ("center", "spread", "mean")})

    def to_dict(self) -> dict[str, float]:
        """JSON-ready; floats come back to the bit."""
        return asdict(self)

    def of_rows(self, scores: FloatArray) -> FloatArray:
        """Weights of these scores, float64."""
        weights: FloatArray = log_odds_weight((self.center - scores) / self.spread) / self.mean
        return weights
