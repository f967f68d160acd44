"""The metric section: what pairs are ranked by. Names and formulas stand in `pipeline.metrics`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import OneOf, Section
from pipeline.metrics.potential import EXPLICIT, EXPLICIT_SIGNED, METRICS, Term
from pipeline.metrics.ratio import RATIO_METHODS

Explicit = Literal["signed", "absolute", "candidates"]


class Metric(Section):
    """What pairs are ranked by. A setting that the metric does not read is ignored.

    `alignpot metrics` lists formulas and sources of the metrics and of the ways to set the ratio.
    """

    name: Annotated[str, OneOf(METRICS)] = "potential"
    """The metric; pairs of the highest score rank first."""
    weight: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """w of M_AP = explicit - w x implicit. `auto` estimates it from the scores by the method `ratio`."""
    ratio: Annotated[str, OneOf(RATIO_METHODS)] = "whitening"
    """How `weight: auto` estimates the ratio of the two margins."""
    normalise: Literal["zscore", "robust", "rank", "none"] = "zscore"
    """How each margin is normalised over the whole set before they are combined: z-scores, `robust` (median and median
    absolute deviation), ranks, or not at all."""
    explicit: Explicit = "signed"
    """Explicit margin: reward of chosen minus reward of rejected, its magnitude, or the range of rewards over all
    candidates of the prompt."""
    implicit: Literal["absolute", "signed"] = "absolute"
    """Implicit margin: its magnitude, or implicit reward of chosen minus that of rejected."""
    order: Literal["smallest", "largest"] = "smallest"
    """Which implicit margins the metric `implicit` ranks first."""

    @model_validator(mode="after")
    def _ratio_of_margins(self) -> "Metric":
        if self.name == "potential" and self.weight == "auto" and self.normalise == "rank":
            raise ValueError("weight: auto is a ratio of margins, which ranks have lost: choose another normalise")
        return self

    @property
    def reads_explicit(self) -> bool:
        """Whether the metric reads rewards."""
        return not {EXPLICIT, EXPLICIT_SIGNED}.isdisjoint(self._terms)

    @property
    def reads_implicit(self) -> bool:
        """Whether the metric reads log-probs. A potential of weight 0 does not."""
        return any(term.startswith("margin_implicit") for term in self._terms)

    @property
    def reads_candidates(self) -> bool:
        """Whether the metric reads the rewards of all candidates."""
        return EXPLICIT in self._terms and self.explicit == "candidates"

    @property
    def _terms(self) -> tuple[Term, ...]:
        return METRICS[self.name].terms(self)
