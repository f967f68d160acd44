"""f-DPO: the log-ratio shaped by another divergence than the reverse KL of DPO, r = beta * f'(pi / pi_ref)."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from pipeline.metrics.columns import FloatArray
from pipeline.metrics.objectives.definition import Definition, Parameters, Quantities, log_ratio


def forward_kl(side: Quantities, parameters: Parameters) -> FloatArray:
    """f-DPO, forward KL: r = beta * (1 - exp(-lr)); infinite where exp(-lr) overflows, below lr = -709."""
    shaped: FloatArray = -np.expm1(-log_ratio(side))
    return parameters["beta"] * shaped


def jensen_shannon(side: Quantities, parameters: Parameters) -> FloatArray:
    """f-DPO, Jensen-Shannon: r = beta * (log 2 + logsigmoid(lr))."""
    shaped: FloatArray = np.log(2.0) - np.logaddexp(0.0, -log_ratio(side))
    return parameters["beta"] * shaped


DIVERGENCE: Final[Mapping[str, Definition]] = {
    "f-dpo-forward-kl": Definition(
        reads=("policy_logp", "reference_logp"),
        reward=forward_kl,
        defaults={"beta": 0.1},
        formula="beta * (1 - exp(-lr))",
        typical="beta 0.1",
        source="arXiv 2309.16240; TRL DPOTrainer, f_divergence_type forward_kl",
    ),
    "f-dpo-js": Definition(
        reads=("policy_logp", "reference_logp"),
        reward=jensen_shannon,
        defaults={"beta": 0.1},
        formula="beta * (log 2 + logsigmoid(lr))",
        typical="beta 0.1",
        source="arXiv 2309.16240; TRL DPOTrainer, f_divergence_type js_divergence",
    ),
}
