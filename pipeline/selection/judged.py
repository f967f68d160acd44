"""How far a pairwise judge is led by place and length of an answer: counts over rows, from both leads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.selection.view import share


@dataclass(slots=True)
class Judged:
    """Counts of one group of rows.

    num_flips: pairs on which the two orders disagree. num_first: of these, those where the judge is for whichever
    answer stands first. num_decided: pairs with a winner whose answers differ in length; num_longer: of these, those
    where the longer one wins.
    """

    num_pairs: int = 0
    num_flips: int = 0
    num_first: int = 0
    num_decided: int = 0
    num_longer: int = 0

    def add(self, leads: Sequence[FloatArray], tokens: Sequence[FloatArray], rows: BoolArray) -> None:
        """Count some rows: both leads, and the lengths of both answers if they are known, each [num_rows]."""
        chosen, rejected = (lead[rows] for lead in leads)
        flips = np.sign(chosen) * np.sign(rejected) > 0
        self.num_pairs += int(np.count_nonzero(np.isfinite(chosen + rejected)))
        self.num_flips += int(np.count_nonzero(flips))
        self.num_first += int(np.count_nonzero(flips & (chosen > 0)))
        if tokens:
            longer = np.sign(tokens[0][rows] - tokens[1][rows]) * np.sign(chosen - rejected)
            self.num_decided += int(np.count_nonzero(~flips & (np.abs(longer) > 0)))
            self.num_longer += int(np.count_nonzero(~flips & (longer > 0)))


def shares_of(groups: Mapping[str, Judged]) -> dict[str, Any]:
    """The counts of each group as shares, JSON-ready."""
    return {
        group: {
            "flips": share(counts.num_flips, counts.num_pairs),
            "flips_for_first": share(counts.num_first, counts.num_flips),
            "longer_wins": share(counts.num_longer, counts.num_decided),
        }
        for group, counts in groups.items()
    }
