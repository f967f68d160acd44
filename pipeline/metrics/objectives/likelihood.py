"""Objectives without a reference: the reward is a function of the policy's likelihood alone."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from pipeline.metrics.columns import FloatArray
from pipeline.metrics.objectives.definition import Definition, Parameters, Quantities, mean_logp

_LOG_HALF: Final = -np.log(2.0)


def simpo(side: Quantities, parameters: Parameters) -> FloatArray:
    """SimPO: r = beta * lp / n. The target margin gamma belongs to the loss and shifts no ranking."""
    return parameters["beta"] * mean_logp(side)


def alphapo(side: Quantities, parameters: Parameters) -> FloatArray:
    """AlphaPO: r = beta * (1 - p^(-alpha)) / alpha with p = exp(lp / n); SimPO where alpha is 0.

    Computed as -beta * expm1(-alpha * lp / n) / alpha, exact near alpha 0; infinite where p^(-alpha) overflows.
    """
    alpha = parameters["alpha"]
    if alpha == 0:
        return simpo(side, parameters)
    shaped: FloatArray = np.expm1(-alpha * mean_logp(side)) / -alpha
    return parameters["beta"] * shaped


def cpo(side: Quantities, parameters: Parameters) -> FloatArray:
    """CPO: r = beta * lp, summed over tokens; its likelihood term on chosen (cpo_alpha) is no part of the reward."""
    return parameters["beta"] * side["policy_logp"]


def orpo(side: Quantities, parameters: Parameters) -> FloatArray:
    """ORPO: r = log odds of p = exp(lp / n), that is m - log(1 - exp(m)) with m = lp / n.

    Infinite where m is 0 and NaN above: certainty has no finite odds. TRL's beta weighs the term in the loss, and the
    `rewards/*` that it logs are beta * m, not this.
    """
    del parameters
    mean = mean_logp(side)
    # Two forms, so that neither a mean near 0 nor a very negative one loses its digits.
    near_certain = np.log(-np.expm1(mean))
    unlikely = np.log1p(-np.exp(np.minimum(mean, _LOG_HALF)))
    odds: FloatArray = mean - np.where(mean > _LOG_HALF, near_certain, unlikely)
    return odds


def rrhf(side: Quantities, parameters: Parameters) -> FloatArray:
    """RRHF: r = lp / n, as ranked by its hinge loss; also CPO with TRL's `ipo` loss."""
    del parameters
    return mean_logp(side)


def slic_reference_free(side: Quantities, parameters: Parameters) -> FloatArray:
    """SLiC without reference: r = lp, in a hinge loss max(0, delta - margin)."""
    del parameters
    return side["policy_logp"]


LIKELIHOOD: Final[Mapping[str, Definition]] = {
    "simpo": Definition(
        reads=("policy_logp", "num_tokens"),
        reward=simpo,
        defaults={"beta": 2.0},
        formula="beta * lp / n",
        typical="beta 2 to 10, gamma / beta 0.1 to 0.8",
        source="arXiv 2405.14734 eq. 4; TRL CPOTrainer.cpo_loss, simpo",
    ),
    "alphapo": Definition(
        reads=("policy_logp", "num_tokens"),
        reward=alphapo,
        defaults={"beta": 2.5, "alpha": 0.25},
        negative_alpha=True,
        formula="beta * (1 - exp(-alpha * lp / n)) / alpha",
        typical="beta 2.5, alpha 0.25",
        source="arXiv 2501.03884; TRL CPOTrainer.cpo_loss, alphapo",
    ),
    "cpo": Definition(
        reads=("policy_logp",),
        reward=cpo,
        defaults={"beta": 0.1},
        formula="beta * lp",
        typical="beta 0.1, cpo_alpha 1.0",
        source="arXiv 2401.08417 eq. 3; TRL CPOTrainer.cpo_loss, sigmoid",
    ),
    "orpo": Definition(
        reads=("policy_logp", "num_tokens"),
        reward=orpo,
        formula="m - log(1 - exp(m)), m = lp / n",
        typical="lambda 0.1 (TRL's beta), weighs the loss only",
        source="arXiv 2403.07691 eq. 4, 7; TRL ORPOTrainer.odds_ratio_loss",
    ),
    "rrhf": Definition(
        reads=("policy_logp", "num_tokens"),
        reward=rrhf,
        formula="lp / n",
        typical="lambda tuned, weighs the loss only",
        source="arXiv 2304.05302",
    ),
    "slic-reference-free": Definition(
        reads=("policy_logp",),
        reward=slic_reference_free,
        formula="lp",
        typical="delta 1, weighs the loss only",
        source="arXiv 2305.10425",
    ),
}
