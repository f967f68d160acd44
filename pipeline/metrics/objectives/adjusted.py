"""DPO with a further term: for length, for a falling likelihood of chosen, for a policy that moved away."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from pipeline.metrics.columns import FloatArray
from pipeline.metrics.objectives.definition import (
    Definition,
    Parameters,
    Quantities,
    log_ratio,
    mean_log_ratio,
    mean_logp,
)


def r_dpo(side: Quantities, parameters: Parameters) -> FloatArray:
    """R-DPO: r = beta * lr + length_sign * alpha * n.

    length_sign 1 is what follows from maximising E[r - alpha * n] - beta * KL: the optimal policy is proportional to
    pi_ref * exp((r - alpha * n) / beta), hence r = beta * lr + alpha * n + a term of the prompt. Some implementations
    subtract the term; length_sign -1 is theirs.
    """
    return parameters["beta"] * log_ratio(side) + parameters["length_sign"] * parameters["alpha"] * side["num_tokens"]


def alpha_dpo(side: Quantities, parameters: Parameters) -> FloatArray:
    """alpha-DPO: r = beta * (lp - alpha * lr) / n, the reward under the reference U * (pi / pi_ref)^alpha.

    Per token and without the z-score of the term over a training batch, which only a trainer has.
    """
    return parameters["beta"] * (mean_logp(side) - parameters["alpha"] * mean_log_ratio(side))


def dpop(chosen: Quantities, rejected: Quantities, parameters: Parameters) -> FloatArray:
    """DPOP (Smaug): margin = beta * (lr_w - lr_l - lambda * max(0, -lr_w)), lambda being `penalty`.

    Only chosen is penalised for losing likelihood, so exchanging the sides does not negate the margin, and one side
    alone has no reward.
    """
    ratio = log_ratio(chosen)
    lost = np.maximum(0.0, -ratio)
    return parameters["beta"] * (ratio - log_ratio(rejected) - parameters["penalty"] * lost)


ADJUSTED: Final[Mapping[str, Definition]] = {
    "r-dpo": Definition(
        reads=("policy_logp", "reference_logp", "num_tokens"),
        reward=r_dpo,
        defaults={"beta": 0.1, "alpha": 0.05, "length_sign": 1},
        formula="beta * lr + length_sign * alpha * n",
        typical="beta 0.1, alpha 0.05 to 1; length_sign 1 derived, -1 in some implementations",
        source="arXiv 2403.19159",
    ),
    "dpop": Definition(
        reads=("policy_logp", "reference_logp"),
        margin=dpop,
        defaults={"beta": 0.1, "penalty": 50.0},
        formula="margin: beta * (lr_w - lr_l - penalty * max(0, -lr_w))",
        typical="beta 0.1, lambda (penalty) 50",
        source="arXiv 2402.13228",
    ),
    "alpha-dpo": Definition(
        reads=("policy_logp", "reference_logp", "num_tokens"),
        reward=alpha_dpo,
        defaults={"beta": 2.5, "alpha": 0.2},
        formula="beta * (lp - alpha * lr) / n",
        typical="beta 2.5, alpha 0.2, gamma / beta 0.6",
        source="arXiv 2410.10148",
    ),
}
