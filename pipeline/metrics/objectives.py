"""What each training objective takes a policy's log-probabilities to be worth: implicit rewards and margins.

In formulas: lp = log pi(y|x) and lp_ref = log pi_ref(y|x), both summed over the response's tokens; n = the number of
those tokens; lr = lp - lp_ref. Everything is float64, element-wise, one value a row, NaN where there is none.

One objective is one function with its entry on top, which gives its parameters and their defaults as well. Nothing else
in the pipeline knows its formula.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from pipeline.metrics.columns import FloatArray

Quantity = Literal["policy_logp", "reference_logp", "num_tokens"]
Side: TypeAlias = Mapping[Quantity, FloatArray]
"""What is known of one side of every pair: each value finite or NaN, token counts at least 1 or NaN."""

Parameters: TypeAlias = Mapping[str, float]

_SUM: Final = ("policy_logp",)
_MEAN: Final = ("policy_logp", "num_tokens")
_RATIO: Final = ("policy_logp", "reference_logp")
_MEAN_RATIO: Final = ("policy_logp", "reference_logp", "num_tokens")
_LOG_HALF: Final = -np.log(2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One objective. Exactly one of `reward` and `margin` is there.

    reads: the quantities of each side that it takes.
    defaults: its parameters, which are keys of the config's objective section, each with its default value.
    negative_alpha: whether alpha may be below 0.
    target: the margin that the loss asks for, gamma, as trainers have it by default; None if the loss has none.
    formula, source, typical: for people; typical names the hyperparameters as papers and trainers set them.
    reward: (side, parameters) -> reward of that side; the margin is chosen minus rejected.
    margin: (chosen, rejected, parameters) -> margin, for an objective that gives one side alone no reward.
    """

    reads: tuple[Quantity, ...]
    formula: str
    typical: str
    source: str
    defaults: Parameters
    negative_alpha: bool = False
    target: float | None = None
    reward: Callable[[Side, Parameters], FloatArray] | None = None
    margin: Callable[[Side, Side, Parameters], FloatArray] | None = None

    @property
    def reads_reference(self) -> bool:
        """Whether log-probs of a reference are among what it reads."""
        return "reference_logp" in self.reads


OBJECTIVES: Final[dict[str, Definition]] = {}


def _objective(
    name: str, reads: tuple[Quantity, ...], *, kind: str = "reward", **about: Any
) -> Callable[[Callable[..., FloatArray]], Callable[..., FloatArray]]:
    """Enter the function that follows as the objective `name`; what is no field of Definition is a default."""
    names = ("formula", "typical", "source", "negative_alpha", "target")
    fields = {name: about.pop(name) for name in names if name in about}

    def entered(function: Callable[..., FloatArray]) -> Callable[..., FloatArray]:
        formula: dict[str, Any] = {kind: function}
        OBJECTIVES[name] = Definition(reads=reads, defaults=about, **fields, **formula)
        return function

    return entered


def log_ratio(side: Side) -> FloatArray:
    """The log-ratio lr = lp - lp_ref."""
    return side["policy_logp"] - side["reference_logp"]


def mean_logp(side: Side) -> FloatArray:
    """Mean log-probability of a response token, lp / n."""
    return side["policy_logp"] / side["num_tokens"]


def mean_log_ratio(side: Side) -> FloatArray:
    """Mean log-ratio of a response token, lr / n."""
    return log_ratio(side) / side["num_tokens"]


@_objective(
    "simpo", _MEAN, beta=2.0, target=0.5,
    formula="beta * lp / n",
    typical="beta 2 to 10, gamma / beta 0.1 to 0.8",
    source="arXiv 2405.14734 eq. 4; TRL CPOTrainer.cpo_loss, simpo",
)  # fmt: skip
def _simpo(side: Side, parameters: Parameters) -> FloatArray:
    """The target margin gamma belongs to the loss and shifts no ranking."""
    return parameters["beta"] * mean_logp(side)


@_objective(
    "alphapo", _MEAN, beta=2.5, alpha=0.25, negative_alpha=True, target=0.5,
    formula="beta * (1 - exp(-alpha * lp / n)) / alpha",
    typical="beta 2.5, alpha 0.25",
    source="arXiv 2501.03884; TRL CPOTrainer.cpo_loss, alphapo",
)  # fmt: skip
def _alphapo(side: Side, parameters: Parameters) -> FloatArray:
    """R = beta * (1 - p^(-alpha)) / alpha with p = exp(lp / n); SimPO where alpha is 0.

    Computed by expm1, exact near alpha 0; infinite where p^(-alpha) overflows.
    """
    alpha = parameters["alpha"]
    if alpha == 0:
        return _simpo(side, parameters)
    shaped: FloatArray = np.expm1(-alpha * mean_logp(side)) / -alpha
    return parameters["beta"] * shaped


@_objective(
    "cpo", _SUM, beta=0.1,
    formula="beta * lp",
    typical="beta 0.1, cpo_alpha 1.0",
    source="arXiv 2401.08417 eq. 3; TRL CPOTrainer.cpo_loss, sigmoid",
)  # fmt: skip
def _cpo(side: Side, parameters: Parameters) -> FloatArray:
    """The likelihood term on chosen (cpo_alpha) is no part of the reward."""
    return parameters["beta"] * side["policy_logp"]


@_objective(
    "orpo", _MEAN,
    formula="m - log(1 - exp(m)), m = lp / n",
    typical="lambda 0.1 (TRL's beta), weighs the loss only",
    source="arXiv 2403.07691 eq. 4, 7; TRL ORPOTrainer.odds_ratio_loss",
)  # fmt: skip
def _orpo(side: Side, _: Parameters) -> FloatArray:
    """Log odds of p = exp(lp / n). Infinite where m is 0 and NaN above: certainty has no finite odds.

    TRL's beta weighs the term in the loss, and the `rewards/*` that it logs are beta * m, not this.
    """
    mean = mean_logp(side)
    # Two forms, so that neither a mean near 0 nor a very negative one loses its digits.
    near_certain = np.log(-np.expm1(mean))
    unlikely = np.log1p(-np.exp(np.minimum(mean, _LOG_HALF)))
    odds: FloatArray = mean - np.where(mean > _LOG_HALF, near_certain, unlikely)
    return odds


@_objective(
    "rrhf", _MEAN,
    formula="lp / n",
    typical="lambda tuned, weighs the loss only",
    source="arXiv 2304.05302",
)  # fmt: skip
def _rrhf(side: Side, _: Parameters) -> FloatArray:
    """As ranked by its hinge loss; also CPO with TRL's `ipo` loss."""
    return mean_logp(side)


@_objective(
    "slic-reference-free", _SUM,
    formula="lp",
    typical="delta 1, weighs the loss only",
    source="arXiv 2305.10425",
)  # fmt: skip
def _slic_reference_free(side: Side, _: Parameters) -> FloatArray:
    """In a hinge loss max(0, delta - margin)."""
    return side["policy_logp"]


@_objective(
    "slic", _RATIO, beta=0.1,
    formula="beta * lr",
    typical="beta 0.1",
    source="arXiv 2309.06657; TRL DPOTrainer, hinge",
)  # fmt: skip
@_objective(
    "kto", _RATIO, beta=0.1,
    formula="beta * lr",
    typical="beta 0.1, weights 1 and 1",
    source="arXiv 2402.01306 eq. 7; TRL KTOTrainer, kto",
)  # fmt: skip
@_objective(
    "dpo", _RATIO, beta=2.0,
    formula="beta * lr",
    typical="beta 0.1; 0.01 in SimPO's comparison",
    source="arXiv 2305.18290 eq. 5; TRL DPOTrainer, sigmoid",
)  # fmt: skip
def _dpo(side: Side, parameters: Parameters) -> FloatArray:
    """Up to a term of the prompt.

    Shared by cDPO, robust, EXO, NCA, BCO, SPPO, APO, DiscoPOP and AOT, which differ in what they do with it. KTO's
    reference point z0 is the same for both sides and cancels in the margin.
    """
    return parameters["beta"] * log_ratio(side)


@_objective(
    "dpo-norm", _MEAN_RATIO, beta=5.0,
    formula="beta * lr / n",
    typical="beta 5",
    source="arXiv 2411.15124; TRL DPOTrainer, sigmoid_norm",
)  # fmt: skip
def _dpo_norm(side: Side, parameters: Parameters) -> FloatArray:
    return parameters["beta"] * mean_log_ratio(side)


@_objective(
    "ipo", _MEAN_RATIO,
    formula="lr / n",
    typical="tau 0.1 (TRL's beta), in the loss only",
    source="arXiv 2310.12036 eq. 17; TRL DPOTrainer, ipo",
)  # fmt: skip
def _ipo(side: Side, _: Parameters) -> FloatArray:
    """As TRL trains it. tau sets the target 1 / (2 tau) of the loss, not the reward."""
    return mean_log_ratio(side)


@_objective(
    "ipo-sum", _RATIO,
    formula="lr",
    typical="tau 0.1, in the loss only",
    source="arXiv 2310.12036 eq. 17",
)  # fmt: skip
def _ipo_sum(side: Side, _: Parameters) -> FloatArray:
    """As the paper writes it, summed over tokens."""
    return log_ratio(side)


@_objective(
    "f-dpo-forward-kl", _RATIO, beta=0.1,
    formula="beta * (1 - exp(-lr))",
    typical="beta 0.1",
    source="arXiv 2309.16240; TRL DPOTrainer, f_divergence_type forward_kl",
)  # fmt: skip
def _forward_kl(side: Side, parameters: Parameters) -> FloatArray:
    """Infinite where exp(-lr) overflows, below lr = -709."""
    shaped: FloatArray = -np.expm1(-log_ratio(side))
    return parameters["beta"] * shaped


@_objective(
    "f-dpo-js", _RATIO, beta=0.1,
    formula="beta * (log 2 + logsigmoid(lr))",
    typical="beta 0.1",
    source="arXiv 2309.16240; TRL DPOTrainer, f_divergence_type js_divergence",
)  # fmt: skip
def _jensen_shannon(side: Side, parameters: Parameters) -> FloatArray:
    shaped: FloatArray = np.log(2.0) - np.logaddexp(0.0, -log_ratio(side))
    return parameters["beta"] * shaped


@_objective(
    "r-dpo", _MEAN_RATIO, beta=0.1, alpha=0.05, length_sign=1,
    formula="beta * lr + length_sign * alpha * n",
    typical="beta 0.1, alpha 0.05 to 1; length_sign 1 derived, -1 in some implementations",
    source="arXiv 2403.19159",
)  # fmt: skip
def _r_dpo(side: Side, parameters: Parameters) -> FloatArray:
    """length_sign 1 follows from maximising E[r - alpha * n] - beta * KL: r = beta * lr + alpha * n + a prompt term.

    Some implementations subtract the term; length_sign -1 is theirs.
    """
    return parameters["beta"] * log_ratio(side) + parameters["length_sign"] * parameters["alpha"] * side["num_tokens"]


@_objective(
    "dpop", _RATIO, kind="margin", beta=0.1, penalty=50.0,
    formula="margin: beta * (lr_w - lr_l - penalty * max(0, -lr_w))",
    typical="beta 0.1, lambda (penalty) 50",
    source="arXiv 2402.13228",
)  # fmt: skip
def _dpop(chosen: Side, rejected: Side, parameters: Parameters) -> FloatArray:
    """Only chosen is penalised for losing likelihood: exchanging the sides does not negate the margin."""
    ratio = log_ratio(chosen)
    lost = np.maximum(0.0, -ratio)
    return parameters["beta"] * (ratio - log_ratio(rejected) - parameters["penalty"] * lost)


@_objective(
    "alpha-dpo", _MEAN_RATIO, beta=2.5, alpha=0.2,
    formula="beta * (lp - alpha * lr) / n",
    typical="beta 2.5, alpha 0.2, gamma / beta 0.6",
    source="arXiv 2410.10148",
)  # fmt: skip
def _alpha_dpo(side: Side, parameters: Parameters) -> FloatArray:
    """The reward under the reference U * (pi / pi_ref)^alpha.

    Per token, and without the z-score of the term over a training batch, which only a trainer has.
    """
    return parameters["beta"] * (mean_logp(side) - parameters["alpha"] * mean_log_ratio(side))
