"""What scoring gives: one number a sequence, or one for each head, or the reason why it has none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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

    def put_back(self, sizes: Sequence[int], order: Sequence[int]) -> "Scores":
        """The same for groups in their own order. sizes: of the groups here. order: where each of them stood."""
        starts = np.cumsum([0, *sizes])
        moved = np.argsort(np.asarray(order), kind="stable")  # the places here, by where they stood
        here = [place for i in moved for place in range(starts[i], starts[i + 1])]
        left_out = {there: self.left_out[place] for there, place in enumerate(here) if place in self.left_out}
        return Scores(values=self.values[here], left_out=left_out)


def wrong_number(name: str, num_logits: int, wanted: int) -> str:
    """What to say of a model that gives another number of logits than is wanted."""
    if wanted > 1:
        return f"{name} gives {num_logits} logits a dialogue, and `heads` names {wanted}. Name each, in its order."
    return (
        f"{name} gives {num_logits} logits a dialogue; a reward model gives one. Name a model trained as a reward "
        "model (num_labels 1), or one whose output has a `score`; or name each logit: heads: [helpfulness, ...]."
    )
