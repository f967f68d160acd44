"""The metric section of the config: what pairs are ranked by, and which margins each metric reads.

The formulas are in `pipeline.metrics`. Imports only pydantic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from pipeline.config_section import Section

MetricName = Literal[
    "potential",
    "explicit",
    "implicit",
    "random",
    "bees-add",
    "bees-mul",
    "difficulty",
    "sigma-gap",
]
Explicit = Literal["signed", "absolute", "candidates"]
Implicit = Literal["absolute", "signed"]
Normalise = Literal["zscore", "robust", "rank", "none"]
Order = Literal["smallest", "largest"]
RatioMethod = Literal["std", "robust", "bradley-terry", "decorrelation", "whitening"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRule:
    """Which margins a metric reads: of the explicit one, as `metric.explicit` says or always signed."""

    explicit: Literal["as set", "signed", "unread"]
    implicit: bool


METRIC_RULES: Final[Mapping[MetricName, MetricRule]] = {
    "potential": MetricRule(explicit="as set", implicit=True),
    "explicit": MetricRule(explicit="as set", implicit=False),
    "implicit": MetricRule(explicit="unread", implicit=True),
    "random": MetricRule(explicit="unread", implicit=False),
    "bees-add": MetricRule(explicit="signed", implicit=True),
    "bees-mul": MetricRule(explicit="signed", implicit=True),
    "difficulty": MetricRule(explicit="unread", implicit=True),
    "sigma-gap": MetricRule(explicit="signed", implicit=True),
}


class Metric(Section):
    """What pairs are ranked by. Settings that a metric does not read are left out of account."""

    name: MetricName = "potential"
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"] = 1.0
    """w of M_AP = explicit - w * implicit; auto estimates it from the margins by the method `ratio`."""
    ratio: RatioMethod = "whitening"
    normalise: Normalise = "zscore"
    explicit: Explicit = "signed"
    implicit: Implicit = "absolute"
    order: Order = "smallest"
    """Which implicit margins the metric `implicit` ranks first."""

    @model_validator(mode="after")
    def _ratio_of_margins(self) -> "Metric":
        if self.name == "potential" and self.weight == "auto" and self.normalise == "rank":
            raise ValueError("weight: auto is a ratio of margins, which ranks have lost: choose another normalise")
        return self

    @property
    def reads_explicit(self) -> bool:
        """Whether the metric reads rewards. A weight of 0 leaves the potential the explicit margin alone."""
        return METRIC_RULES[self.name].explicit != "unread"

    @property
    def reads_implicit(self) -> bool:
        """Whether the metric reads log-probs."""
        return METRIC_RULES[self.name].implicit and not (self.name == "potential" and self.weight == 0)

    @property
    def reads_candidates(self) -> bool:
        """Whether the metric reads the rewards of all candidates."""
        return METRIC_RULES[self.name].explicit == "as set" and self.explicit == "candidates"
