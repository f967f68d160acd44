"""Objectives whose reward is a multiple of the log-ratio to a reference: DPO and its relatives."""

from collections.abc import Mapping
from typing import Final

from pipeline.metrics.columns import FloatArray
from pipeline.metrics.objectives.definition import (
    Definition,
    Parameters,
    Quantities,
    log_ratio,
    mean_log_ratio,
)


def dpo(side: Quantities, parameters: Parameters) -> FloatArray:
    """DPO: r = beta * lr, up to a term of the prompt.

    Shared by the losses cDPO, robust, EXO, NCA, BCO, SPPO, APO, DiscoPOP and AOT: they differ in what they do with it.
    """
    return parameters["beta"] * log_ratio(side)


def dpo_norm(side: Quantities, parameters: Parameters) -> FloatArray:
    """Length-normalised DPO: r = beta * lr / n."""
    return parameters["beta"] * mean_log_ratio(side)


def ipo(side: Quantities, parameters: Parameters) -> FloatArray:
    """IPO as TRL trains it: r = lr / n. tau (TRL's beta) sets the target 1 / (2 tau) of the loss, not the reward."""
    del parameters
    return mean_log_ratio(side)


def ipo_sum(side: Quantities, parameters: Parameters) -> FloatArray:
    """IPO as the paper writes it: r = lr, summed over tokens."""
    del parameters
    return log_ratio(side)


def kto(side: Quantities, parameters: Parameters) -> FloatArray:
    """KTO: r = beta * lr; the reference point z0 is the same for both sides and cancels in the margin."""
    return dpo(side, parameters)


def slic(side: Quantities, parameters: Parameters) -> FloatArray:
    """SLiC with a reference (RSO's hinge loss): r = beta * lr, in max(0, 1 - margin); beta is 1 / margin."""
    return dpo(side, parameters)


_SUMMED: Final = ("policy_logp", "reference_logp")
_AVERAGED: Final = ("policy_logp", "reference_logp", "num_tokens")

LOG_RATIO: Final[Mapping[str, Definition]] = {
    "dpo": Definition(
        reads=_SUMMED,
        reward=dpo,
        defaults={"beta": 2.0},
        formula="beta * lr",
        typical="beta 0.1; 0.01 in SimPO's comparison",
        source="arXiv 2305.18290 eq. 5; TRL DPOTrainer, sigmoid",
    ),
    "dpo-norm": Definition(
        reads=_AVERAGED,
        reward=dpo_norm,
        defaults={"beta": 5.0},
        formula="beta * lr / n",
        typical="beta 5",
        source="arXiv 2411.15124; TRL DPOTrainer, sigmoid_norm",
    ),
    "ipo": Definition(
        reads=_AVERAGED,
        reward=ipo,
        formula="lr / n",
        typical="tau 0.1 (TRL's beta), in the loss only",
        source="arXiv 2310.12036 eq. 17; TRL DPOTrainer, ipo",
    ),
    "ipo-sum": Definition(
        reads=_SUMMED,
        reward=ipo_sum,
        formula="lr",
        typical="tau 0.1, in the loss only",
        source="arXiv 2310.12036 eq. 17",
    ),
    "kto": Definition(
        reads=_SUMMED,
        reward=kto,
        defaults={"beta": 0.1},
        formula="beta * lr",
        typical="beta 0.1, weights 1 and 1",
        source="arXiv 2402.01306 eq. 7; TRL KTOTrainer, kto",
    ),
    "slic": Definition(
        reads=_SUMMED,
        reward=slic,
        defaults={"beta": 0.1},
        formula="beta * lr",
        typical="beta 0.1",
        source="arXiv 2309.06657; TRL DPOTrainer, hinge",
    ),
}
