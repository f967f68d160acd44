"""The first pass of a selection: rows by outcome, exact moments of the terms, and a small sample for a first guess."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError, SchemaError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.moments import Moments, moments_of
from pipeline.metrics.potential import EXPLICIT, UNIFORM, Ranker, Terms, finite_rows

SAMPLE_ROWS: Final = 2**16

_NO_CANDIDATES: Final = "The source carries no rewards of all candidates: set metric.explicit to signed or absolute."
_NO_REWARD: Final = "That model was not run: add a `reward` section and score again, or choose metric.name: implicit."
_NO_LOGP: Final = "That model was not run: add its section and score again, or choose an objective without it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over the source says about it.

    num_rows: rows that are no duplicates. excluded: those that cannot be ranked, by reason.
    sample: terms of every so many-th ranked row.
    """

    num_rows: int
    excluded: Mapping[str, int]
    moments: Mapping[str, Moments]
    sample: Terms

    @property
    def num_ranked(self) -> int:
        """Rows that have a score."""
        return self.num_rows - sum(self.excluded.values())


def survey(blocks: Iterable[pa.RecordBatch], ranker: Ranker) -> Survey:
    """Pass over all rows once.

    Raises:
        SchemaError: a column the metric reads is null in every row, because that model was not run.
        DataError: no row can be ranked.
    """
    excluded = dict.fromkeys((_reason(term) for term in ranker.terms), 0)
    moments = {term: Moments() for term in ranker.terms} if ranker.needs_moments else {}
    num_values = dict.fromkeys(ranker.columns, 0)
    sample = _StridedSample()
    num_rows = 0
    for block in blocks:
        num_rows += block.num_rows
        for name in num_values:
            num_values[name] += block.num_rows - block.column(name).null_count
        terms = _finite_only(ranker.compute(block), excluded)
        for term in moments:
            moments[term] += moments_of(terms[term])
        sample.add(terms)
    result = Survey(num_rows=num_rows, excluded=excluded, moments=moments, sample=sample.terms())
    _check_rankable(result, ranker, num_values)
    return result


def _finite_only(terms: Terms, excluded: dict[str, int]) -> Terms:
    """The rows whose terms are all finite; the others are added to `excluded`, under the first term that is not."""
    if finite_rows(terms) is None:
        return terms
    keep = np.ones(next(iter(terms.values())).shape, dtype=np.bool_)
    for name, values in terms.items():
        bad = keep & ~np.isfinite(values)
        excluded[_reason(name)] += int(np.count_nonzero(bad))
        keep &= ~bad
    return {name: values[keep] for name, values in terms.items()}


def _reason(term: str) -> str:
    return f"{term}_not_finite"


def _check_rankable(result: Survey, ranker: Ranker, num_values: Mapping[str, int]) -> None:
    if result.num_rows == 0:
        raise DataError("the scored dataset has no scored rows, so there is nothing to select. Check the drop reasons.")
    for term in ranker.terms:
        empty = [name for name in ranker.columns_of(term) if num_values[name] == 0]
        if empty:
            raise SchemaError(_all_null(ranker, term, empty, result.num_rows))
    if result.num_ranked == 0:
        raise DataError(f"none of {result.num_rows} scored rows can be ranked: {dict(result.excluded)}.")


def _all_null(ranker: Ranker, term: str, empty: list[str], num_rows: int) -> str:
    if term == EXPLICIT:
        reader = f"metric.explicit {ranker.metric.explicit}"
        remedy = _NO_CANDIDATES if ranker.metric.explicit == "candidates" else _NO_REWARD
    elif term == UNIFORM:
        reader, remedy = "metric random", "Every scored row has an id; read the output of `alignpot score`."
    else:
        reader, remedy = f"objective {ranker.objective.name}", _NO_LOGP
    return f"{reader} reads {', '.join(empty)}, null in all {num_rows} scored rows. {remedy}"


class _StridedSample:
    """Every stride-th row of a stream, the stride doubling whenever the sample is full."""

    def __init__(self) -> None:
        self._parts: list[dict[str, FloatArray]] = []
        self._stride = 1
        self._seen = 0
        self._size = 0

    def add(self, terms: Terms) -> None:
        part = {name: values[-self._seen % self._stride :: self._stride].copy() for name, values in terms.items()}
        num_rows = len(next(iter(terms.values())))
        self._seen += num_rows
        self._size += len(next(iter(part.values())))
        self._parts.append(part)
        while self._size > SAMPLE_ROWS:
            self._parts = [{name: values[::2] for name, values in self.terms().items()}]
            self._size = (self._size + 1) // 2
            self._stride *= 2

    def terms(self) -> Terms:
        names = self._parts[0] if self._parts else ()
        return {name: np.concatenate([part[name] for part in self._parts]) for name in names}
