"""The inner loops of selection over blocks of rows: exact sums, scores, and the scans that find a threshold.

Each works on one thread and releases the interpreter lock, so that blocks run in threads of the caller, every thread
with its own buffers (`ExactSums`, `Kept`, out). Arrays are float64 of one dimension and may be read-only; contiguous
ones are not copied. Blocks of 2**15 rows suit the second-level cache; any size gives the same results, to the bit.
Importing this is cheap. The first call loads numba and compiles (seconds); the machine code is kept on disk.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.metrics.columns import FloatArray

BELOW: Final = 0
ABOVE: Final = 1
BETWEEN: Final = 2


class ExactSums(NamedTuple):
    """Running exact sums of values and of their squares: one per thread and term, for `add_values` and `survey_scan`.

    total: int64 [2048, 2]; row p holds high * 2**32 + low units of 2**(p - 1074), as (low, high).
    squares: int64 [4160, 2]; row p holds units of 2**(p - 2148).
    exponent: int64 [1], the power of two that the values of the last chunk were below: a guess for the next.
    """

    total: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]
    exponent: npt.NDArray[np.int64]

    @classmethod
    def empty(cls) -> "ExactSums":
        """Sums of no values."""
        total, squares = np.zeros((2048, 2), dtype=np.int64), np.zeros((4160, 2), dtype=np.int64)
        return cls(total, squares, np.zeros(1, dtype=np.int64))

    def integers(self) -> tuple[int, int]:
        """The sum in units of 2**-1074 and the sum of squares in units of 2**-2148, as `Moments` holds them."""
        return _integer(self.total), _integer(self.squares)


class Band(NamedTuple):
    """What is known of a ranking before its pass. Rows rank by u = (e - centre_e) - rho * (a - centre_a).

    e is the explicit term, a the implicit one or its magnitude. The ratio rho lies in [rho_low, rho_high] and the
    wanted threshold of u in [tau_low, tau_high]; where that turns out wrong, classes say nothing.
    For z-scored terms rho is weight * std_e / std_a. For one term alone give it as both, with rho 0.
    """

    centre_explicit: float
    centre_implicit: float
    rho_low: float
    rho_high: float
    tau_low: float
    tau_high: float


NO_BAND: Final = Band(0.0, 0.0, 0.0, 0.0, float("inf"), float("inf"))
"""No row is above or kept: `survey_scan` only counts and sums."""


class Kept(NamedTuple):
    """Buffers for the rows of a block that a scan cannot settle; each at least as long as the block.

    explicit, implicit: float64, the columns as they were given. rows: int64, the row's place in the block, ascending.
    classes: uint8, BELOW, ABOVE or BETWEEN of all rows of the block. Rows with a term that is not finite are BETWEEN
    there, and not kept.
    """

    explicit: FloatArray
    implicit: FloatArray
    rows: npt.NDArray[np.int64]
    classes: npt.NDArray[np.uint8]

    @classmethod
    def room_for(cls, num_rows: int) -> "Kept":
        """Buffers for blocks of up to this many rows."""
        rows, classes = np.empty(num_rows, dtype=np.int64), np.empty(num_rows, dtype=np.uint8)
        return cls(np.empty(num_rows), np.empty(num_rows), rows, classes)


class ScanCounts(NamedTuple):
    """Rows of a block: certainly above the band, kept, and not finite by the first term that is not."""

    num_above: int
    num_kept: int
    num_bad_explicit: int
    num_bad_implicit: int


class ScoreCounts(NamedTuple):
    """Scores of a block: above the interval, inside it, and NaN or infinite ones, wherever they count."""

    num_above: int
    num_inside: int
    num_bad: int


class Scales(NamedTuple):
    """The potential as (e - mean_e) / std_e - weight * ((a - mean_a) / std_a).

    Means of 0 and deviations of 1 leave a term as it is, to the bit.
    """

    mean_explicit: float
    std_explicit: float
    mean_implicit: float
    std_implicit: float
    weight: float


def add_values(values: FloatArray, sums: ExactSums, *, absolute: bool = False) -> bool:
    """Add values, or their magnitudes, to `sums`. False if one is NaN or infinite; then `sums` is of no more use."""
    from pipeline.metrics import compiled

    return compiled.add_values(_readable(values), absolute, _plain(sums))


def survey_scan(
    explicit: FloatArray,
    implicit: FloatArray,
    band: Band,
    kept: Kept,
    sums: tuple[ExactSums, ExactSums],
    *,
    absolute: bool,
) -> ScanCounts:
    """`band_scan`, and the terms of all finite rows added to `sums`, (explicit, implicit), in the same reading."""
    from pipeline.metrics import compiled

    arrays, settings = _pair(explicit, implicit, kept), _plain(band)
    return ScanCounts(
        *compiled.survey_scan(*arrays, absolute, settings, _plain(kept), (_plain(sums[0]), _plain(sums[1])))
    )


def band_scan(explicit: FloatArray, implicit: FloatArray, band: Band, kept: Kept, *, absolute: bool) -> ScanCounts:
    """Classify rows by the interval of u over the ratios of the band, widened by 2**-48 (|e - c_e| + rho |a - c_a|).

    ABOVE: wholly above tau_high. BELOW: wholly below tau_low. The other rows, if finite, are copied to the front of
    the buffers of `kept`. Let rho be the quotient weight * std_e / std_a that `potential_scores` works with, u* the
    u of a row of score s*, and pad at least 2**-48 * (|u*| + |tau| + |mean_e - c_e| + rho * |mean_a - c_a|) + 2**-1000.
    If rho is in the band and tau_low + pad <= u* <= tau_high - pad, then rows ABOVE score more than s*, rows BELOW
    less, in the arithmetic of `potential_scores`.

    Raises:
        ValueError: the arrays differ in length, or `kept` is shorter.
    """
    from pipeline.metrics import compiled

    arrays, settings = _pair(explicit, implicit, kept), _plain(band)
    return ScanCounts(*compiled.band_scan(*arrays, absolute, settings, _plain(kept)))


def potential_scores(
    explicit: FloatArray, implicit: FloatArray, scales: Scales, out: FloatArray, *, absolute: bool
) -> int:
    """Scores of finite rows into out[: num_rows], as numpy evaluates `Scales` from left to right, plus 0.0.

    Rows with a term that is not finite get NaN. Returns how many those are.

    Raises:
        ValueError: the arrays differ in length, or `out` is shorter.
    """
    from pipeline.metrics import compiled_scores

    if explicit.size != implicit.size or out.size < explicit.size:
        raise ValueError(f"{explicit.size} and {implicit.size} rows do not fit {out.size} scores.")
    return compiled_scores.potential_scores(_readable(explicit), _readable(implicit), absolute, _plain(scales), out)


def scan_scores(scores: FloatArray, low: float, high: float, out: FloatArray) -> ScoreCounts:
    """Count scores > high and copy those with low <= score <= high to the front of `out`, in order.

    Raises:
        ValueError: `out` is shorter than `scores`.
    """
    from pipeline.metrics import compiled_scores

    if out.size < scores.size:
        raise ValueError(f"{out.size} places may not hold {scores.size} scores.")
    return ScoreCounts(*compiled_scores.scan_scores(_readable(scores), float(low), float(high), out))


def _readable(values: FloatArray) -> FloatArray:
    """Contiguous and read-only, so that one compiled version serves all callers."""
    view = np.ascontiguousarray(values, dtype=np.float64).view()
    view.flags.writeable = False
    return view


def _pair(explicit: FloatArray, implicit: FloatArray, kept: Kept) -> tuple[FloatArray, FloatArray]:
    shortest = min(buffer.size for buffer in kept)
    if explicit.size != implicit.size or shortest < explicit.size:
        raise ValueError(f"{explicit.size} and {implicit.size} rows do not fit buffers of {shortest}.")
    return _readable(explicit), _readable(implicit)


def _plain(values: tuple[Any, ...]) -> Any:
    """A bare tuple of the fields, numbers as doubles: compiled code sees their order alone."""
    return tuple(value if isinstance(value, np.ndarray) else float(value) for value in values)


def _integer(words: npt.NDArray[np.int64]) -> int:
    total = 0
    for place in np.flatnonzero(words.any(axis=1)).tolist():
        low, high = words[place].tolist()
        total += ((high << 32) + low) << place
    return total
