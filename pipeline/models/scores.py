"""What scoring gives: one number a sequence, or one for each head, or the reason why it has none."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.drops import Reason
from pipeline.models.packing import Float64Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """The numbers of sequences, in the order of the groups.

    Attributes:
        values: float64, shape (N,), or (N, H) of a model with H heads; NaN for a sequence that was left out.
        left_out: the reason, by the index of the sequence.
    """

    values: Float64Array
    left_out: Mapping[int, Reason]


def wrong_number(name: str, num_logits: int, wanted: int) -> str:
    """What to say of a model that gives another number of logits than is wanted."""
    if wanted > 1:
        return f"{name} gives {num_logits} logits a dialogue, and `heads` names {wanted}. Name each, in its order."
    return (
        f"{name} gives {num_logits} logits a dialogue; a reward model gives one. Name a model trained as a reward "
        "model (num_labels 1), or one whose output has a `score`; or name each logit: heads: [helpfulness, ...]."
    )
