"""The first few rows of a ranking, found while streaming."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.metrics.columns import FloatArray


class Leaders:
    """The `num` rows of highest sign * score seen so far, ties by id; rows whose score is NaN never lead."""

    def __init__(self, num: int, *, sign: int) -> None:
        self._num = num
        self._sign = sign
        self.found: list[tuple[float, str, float, float]] = []  # (-merit, id, explicit, implicit), sorted

    def add(self, scores: FloatArray, ids: pa.Array, margins: tuple[FloatArray, FloatArray]) -> None:
        """Take in a block: scores and margins float64 [num_rows], ids of the same length."""
        merit = self._sign * scores
        picks = np.flatnonzero(np.isfinite(merit))
        if len(self.found) == self._num:
            picks = self._that_beat_the_last(picks, merit, ids)
        if picks.size > self._num:
            bar = np.partition(merit[picks], picks.size - self._num)[picks.size - self._num]
            picks = picks[merit[picks] >= bar]
        names = ids.take(pa.array(picks)).to_pylist()
        explicit, implicit = (values[picks].tolist() for values in margins)
        new = zip((-merit[picks]).tolist(), names, explicit, implicit, strict=True)
        self.found = sorted([*self.found, *new])[: self._num]

    def merge(self, other: "Leaders") -> None:
        """Take in the leaders of other rows."""
        self.found = sorted([*self.found, *other.found])[: self._num]

    def rows(self) -> list[dict[str, Any]]:
        """The rows, first one first, as id, margins and score; a margin that is not known is None."""
        fields = (schema.ID, schema.MARGIN_EXPLICIT, schema.MARGIN_IMPLICIT, schema.POTENTIAL)
        table = [(id_, explicit, implicit, -self._sign * merit) for merit, id_, explicit, implicit in self.found]
        return [{name: _known(value) for name, value in zip(fields, row, strict=True)} for row in table]

    def _that_beat_the_last(self, picks: np.ndarray, merit: FloatArray, ids: pa.Array) -> np.ndarray:
        if not self.found:
            return picks[:0]
        last_merit, last_id = -self.found[-1][0], self.found[-1][1]
        better = picks[merit[picks] > last_merit]
        tied = picks[merit[picks] == last_merit]
        earlier = pc.less(ids.take(pa.array(tied)), last_id).to_numpy(zero_copy_only=False).astype(np.bool_)
        return np.concatenate([better, tied[earlier]])


def _known(value: Any) -> Any:
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None
    return value
