"""What an objective is made of: the quantities of one side, a reward of a side or a margin of a pair, and its source.

In formulas: lp = log pi(y|x) and lp_ref = log pi_ref(y|x), both summed over the response's tokens; n = the number of
those tokens; lr = lp - lp_ref. Everything is float64, element-wise, one value a row, NaN where there is none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pipeline.metrics.columns import FloatArray

Quantity = Literal["policy_logp", "reference_logp", "num_tokens"]
Quantities: TypeAlias = Mapping[Quantity, FloatArray]
"""What is known of one side of every pair: each value finite or NaN, token counts at least 1 or NaN."""

Parameters: TypeAlias = Mapping[str, float]
Reward: TypeAlias = Callable[[Quantities, Parameters], FloatArray]
Margin: TypeAlias = Callable[[Quantities, Quantities, Parameters], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One objective. Exactly one of `reward` and `margin` is there.

    reads: the quantities of each side that it takes.
    defaults: its parameters, which are keys of the config's objective section, each with its default value.
    negative_alpha: whether alpha may be below 0.
    formula, source, typical: for people; typical names the hyperparameters as papers and trainers set them.
    reward: (side, parameters) -> reward of that side; the margin is chosen minus rejected.
    margin: (chosen, rejected, parameters) -> margin, for an objective that gives one side alone no reward.
    """

    reads: tuple[Quantity, ...]
    formula: str
    source: str
    typical: str
    reward: Reward | None = None
    margin: Margin | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)
    negative_alpha: bool = False

    @property
    def reads_reference(self) -> bool:
        """Whether log-probs of a reference are among what it reads."""
        return "reference_logp" in self.reads


def log_ratio(side: Quantities) -> FloatArray:
    """The log-ratio lr = lp - lp_ref."""
    return side["policy_logp"] - side["reference_logp"]


def mean_logp(side: Quantities) -> FloatArray:
    """Mean log-probability of a response token, lp / n."""
    return side["policy_logp"] / side["num_tokens"]


def mean_log_ratio(side: Quantities) -> FloatArray:
    """Mean log-ratio of a response token, lr / n."""
    return log_ratio(side) / side["num_tokens"]
