"""The sections metric.combine and select.agreement: how several rewards become one margin, and how many must agree."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.rewards import RewardName
from pipeline.config.section import OneOf, Section
from pipeline.errors import ConfigError
from pipeline.metrics.combine import RULES

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Combine(Section):
    """How the margins of several rewards become the explicit margin. The name of a rule alone stands for a section of
    it: `combine: min`.

    Before, each is divided by its root mean square over the rows that `select.where` leaves (`zscore`), or replaced by
    the rank of its magnitude with its sign (`rank`), so that 0 stays a tie. The formulas stand in
    `pipeline/metrics/combine.py`.
    """

    rule: Annotated[str, OneOf(RULES)] = "mean"
    """`mean`, `min`, `median`, `weighted` (sum of weight x margin), `mean-minus-std` (mean - penalty x standard
    deviation over the rewards), or `majority` (mean of the signs). Default: `weighted` with weights, else `mean`."""
    members: tuple[RewardName, ...] = ()
    """Names of the rewards. Default: all that are stored, or those that have weights."""
    weights: dict[RewardName, Finite] | None = None
    """Weight of each reward, such as `{helpfulness: 2, verbosity: -0.5}`."""
    penalty: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """lambda of `mean-minus-std`."""
    normalise: Literal["zscore", "rank", "none"] = "zscore"
    """How the margin of each reward is normalised over the set."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_name(cls, data: Any) -> Any:
        given = {"rule": data} if isinstance(data, str) else data
        if isinstance(given, Mapping) and given.get("weights"):
            return {"rule": "weighted", "members": tuple(given["weights"]), **given}
        return given

    @model_validator(mode="after")
    def _weights_of_members(self) -> "Combine":
        if (self.rule == "weighted") != bool(self.weights):
            raise ValueError("weights are for rule: weighted, which needs them")
        if len({*self.members}) < len(self.members):
            raise ValueError(f"members names a reward twice: {[*self.members]}")
        if self.weights and {*self.weights} != {*self.members}:
            raise ValueError("weights and members name different rewards: leave members out")
        return self

    def over(self, stored: Sequence[str]) -> "Combine":
        """The same with its members named, of the rewards that there are. Raises a ConfigError if it names others."""
        members = self.members or tuple(stored)
        if not members or not {*members} <= {*stored}:
            raise ConfigError(
                f"metric.combine reads the rewards {[*members]}; the scored dataset holds {[*stored]}. Name some of "
                "these, or score with `rewards`."
            )
        return self.model_copy(update={"members": members})


class Agreement(Section):
    """Keeps pairs on which several rewards agree with the label."""

    at_least: int = Field(ge=1)
    """A pair stays if this many rewards of `metric.combine` give chosen more than rejected, whatever their weights. A
    tie does not count. The sides are those that `select.labels` leaves."""
