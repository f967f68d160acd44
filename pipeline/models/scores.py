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
