"""Inner loops of `pipeline.metrics.kernels`, compiled by numba; call them through that module.

No result depends on the order of the rows, the size of the blocks or the instructions the machine has. Additions may
be reordered in `_slice_sums` alone, where all of them are exact. Only which rows are BETWEEN, where a band cannot
tell, may vary with the machine.

How the sums stay exact at the speed of plain ones: a chunk of 2**11 values below 2**e is cut into three slices of 21
bits on the common grids 2**(e - 21), 2**(e - 43), 2**(e - 65) (adding and subtracting 1.5 * 2**(52 + g) rounds to a
multiple of 2**g). A product of two slices has 42 bits and a sum of 2**11 of them 53, so the float64 sums of products
are exact in any order, with or without fused multiply-add. (The error-free slicing of Ozaki et al., Numerical
Algorithms 59, 2012.) They are added into integers, one for each power of two. Values below 2**(e - 13), which three
slices may not exhaust, and all values of a chunk of huge ones are added into the same integers one by one.

Functions that call each other stand in this one file: numba's cache on disk notices a change in the file of the
function called, not of those that one calls.
"""

import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.metrics.columns import FloatArray

IntArray: TypeAlias = npt.NDArray[np.int64]
Sums: TypeAlias = tuple[IntArray, IntArray, IntArray]
Kept: TypeAlias = tuple[FloatArray, FloatArray, IntArray, npt.NDArray[np.uint8]]
Band: TypeAlias = tuple[float, float, float, float, float, float]
Counts: TypeAlias = tuple[int, int, int, int]

_CHUNK: Final = 2**11
_GROUP: Final = 64
_SLICE_BITS: Final = 21
_STEP: Final = _SLICE_BITS + 1
_NUM_SLICES: Final = 3
_EXACT_BITS: Final = _NUM_SLICES * _STEP - 1 - 53  # a double of exponent e - 12 ends at the last grid
# Small values cost a pass of their own; the grid is made finer for more than so many, if by more than so many bits.
_FEW: Final = 2**5
_NEAR: Final = 3
# Chunks whose largest magnitude is outside these powers of two could overflow or underflow in products of slices.
_HIGH: Final = 450
_LOW: Final = -300
_UNIT: Final = 1074  # sums count units of 2**-1074, sums of squares of 2**-2148

_NOT_FINITE: Final = 0x7FF0000000000000
_MAGNITUDE: Final = 0x7FFFFFFFFFFFFFFF
_FRACTION: Final = 0x000FFFFFFFFFFFFF
_LEADING_BIT: Final = 0x0010000000000000
_LOW_WORD: Final = 0xFFFFFFFF
_HALF_BITS: Final = 27
_HALF: Final = 2**_HALF_BITS - 1

_BELOW: Final = 0
_ABOVE: Final = 1
_BETWEEN: Final = 2
_EIGHT_BETWEEN: Final = 0x0202020202020202
# Above 30 times the rounding of a row's score, and of its interval here.
_ROUNDING: Final = 2.0**-48

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """The function as machine code, from its first call on; the interpreter lock is released while it runs."""
    return _jit(function)


def _jit(function: _Function, **flags: Any) -> _Function:
    try:
        return cast(_Function, njit(nogil=True, cache=True, error_model="numpy", **flags)(function))
    except RuntimeError:  # no folder can be written for the cache: compile in every process
        return cast(_Function, njit(nogil=True, error_model="numpy", **flags)(function))


def _compiled_in_any_order(function: _Function) -> _Function:
    return _jit(function, fastmath={"reassoc", "contract"})


def _compiled_with_fma(function: _Function) -> _Function:
    return _jit(function, fastmath={"contract"})


@compiled
def _cut(value: float, anchor: float) -> tuple[float, float]:
    # A function of its own: operations keep the flags of the function they stand in, and these must not be reordered.
    part = (value + anchor) - anchor
    return part, value - part


@_compiled_in_any_order
def _slice_sums(values: FloatArray, absolute: bool, exponent: int) -> tuple[Any, Any, Any, Any]:  # noqa: FBT001
    """Sums of the three slices and of their products; the largest magnitude, as bits; how many values are small."""
    anchor0 = math.ldexp(1.5, 52 + exponent - _SLICE_BITS)
    anchor1 = math.ldexp(1.5, 52 + exponent - _SLICE_BITS - _STEP)
    smallest = _smallest(exponent)
    bits = values.view(np.int64)
    largest = np.int64(0)
    num_small = np.int64(0)
    t0 = t1 = t2 = q00 = q01 = q02 = q11 = q12 = q22 = 0.0
    for i in range(values.size):
        magnitude = bits[i] & _MAGNITUDE
        small = magnitude < smallest
        value = abs(values[i]) if absolute else values[i]
        s0, rest = _cut(0.0 if small else value, anchor0)
        s1, s2 = _cut(rest, anchor1)
        largest = max(largest, magnitude)
        num_small += small
        t0, t1, t2 = t0 + s0, t1 + s1, t2 + s2
        q00, q01, q02 = q00 + s0 * s0, q01 + s0 * s1, q02 + s0 * s2
        q11, q12, q22 = q11 + s1 * s1, q12 + s1 * s2, q22 + s2 * s2
    return (t0, t1, t2), (q00, q01, q02, q11, q12, q22), largest, num_small


@compiled
def _smallest(exponent: int) -> Any:
    """Bits of the smallest magnitude that three slices exhaust."""
    return np.int64(exponent - _EXACT_BITS + 1022) << 52


@compiled
def _deposit(words: IntArray, place: int, value: Any) -> None:
    low = words[place, 0] + (value & _LOW_WORD)
    words[place, 0] = low & _LOW_WORD
    words[place, 1] += (value >> 32) + (low >> 32)


@compiled
def _add_slices(sums: Sums, totals: Any, products: Any, exponent: int) -> None:
    place = 0
    for i in range(_NUM_SLICES):
        grid_i = exponent - _SLICE_BITS - i * _STEP
        _deposit(sums[0], grid_i + _UNIT, np.int64(math.ldexp(totals[i], -grid_i)))
        for j in range(i, _NUM_SLICES):
            grid_ij = grid_i + exponent - _SLICE_BITS - j * _STEP
            twice = 1 if j > i else 0
            _deposit(sums[1], grid_ij + 2 * _UNIT + twice, np.int64(math.ldexp(products[place], -grid_ij)))
            place += 1


@compiled
def _add_small(values: FloatArray, absolute: bool, limit: int, sums: Sums) -> None:  # noqa: FBT001
    """Add the finite values whose magnitude as bits is below the limit, one by one."""
    bits = values.view(np.int64)
    for start in range(0, values.size, _GROUP):
        group = bits[start : start + _GROUP]
        num_small = 0
        for i in range(group.size):
            num_small += group[i] & _MAGNITUDE < limit
        if num_small:
            for i in range(group.size):
                if group[i] & _MAGNITUDE < limit:
                    _add_one(group[i], absolute, sums)


@compiled
def _add_one(bits: int, absolute: bool, sums: Sums) -> None:  # noqa: FBT001
    """Add one finite value as an integer."""
    exponent = (bits & _MAGNITUDE) >> 52
    mantissa = bits & _FRACTION
    if exponent:
        mantissa |= _LEADING_BIT
        exponent -= 1
    if mantissa:
        high, low = mantissa >> _HALF_BITS, mantissa & _HALF
        _deposit(sums[0], exponent, -mantissa if bits < 0 and not absolute else mantissa)
        _deposit(sums[1], 2 * exponent, low * low)
        _deposit(sums[1], 2 * exponent + _HALF_BITS + 1, low * high)
        _deposit(sums[1], 2 * exponent + 2 * _HALF_BITS, high * high)


@compiled
def _add_chunk(values: FloatArray, absolute: bool, sums: Sums) -> bool:  # noqa: FBT001
    """Add at most _CHUNK values; False, with nothing added, if one of them is NaN or infinite."""
    for _ in range(2):
        tried = sums[2][0]
        totals, products, largest, num_small = _slice_sums(values, absolute, tried)
        if largest >= _NOT_FINITE:
            return False
        exponent = max((largest >> 52) - 1022, _LOW)
        if exponent <= tried and (num_small <= _FEW or exponent >= tried - _NEAR):
            _add_slices(sums, totals, products, tried)
            if num_small:
                _add_small(values, absolute, _smallest(tried), sums)
            return True
        if exponent > _HIGH:
            break
        sums[2][0] = exponent
    _add_small(values, absolute, _NOT_FINITE, sums)
    return True


@compiled
def add_values(values: FloatArray, absolute: bool, sums: Sums) -> bool:  # noqa: FBT001
    """Add values to exact sums; False at the first chunk with one that is not finite, earlier chunks added."""
    finite = True
    for start in range(0, values.size, _CHUNK):
        finite = finite and _add_chunk(values[start : start + _CHUNK], absolute, sums)
    return finite


@_compiled_with_fma
def _classify(
    explicit: FloatArray,
    implicit: FloatArray,
    absolute: bool,  # noqa: FBT001
    band: Band,
    classes: npt.NDArray[np.uint8],
) -> int:
    """Class of every row; rows that are not finite are BETWEEN, for no comparison with NaN holds."""
    centre_explicit, centre_implicit, rho_low, rho_high, tau_low, tau_high = band
    rho = 0.5 * (rho_low + rho_high)
    reach = 0.5 * (rho_high - rho_low) + _ROUNDING * max(abs(rho_low), abs(rho_high))
    num_above = 0
    for i in range(explicit.size):
        from_explicit = explicit[i] - centre_explicit
        from_implicit = (abs(implicit[i]) if absolute else implicit[i]) - centre_implicit
        middle = from_explicit - rho * from_implicit
        reached = reach * abs(from_implicit) + _ROUNDING * abs(from_explicit)
        above = middle - reached > tau_high
        below = middle + reached < tau_low
        num_above += above
        classes[i] = np.uint8(_ABOVE) if above else (np.uint8(_BELOW) if below else np.uint8(_BETWEEN))
    return num_above


@compiled
def _keep(explicit: FloatArray, implicit: FloatArray, start: int, kept: Kept, num_kept: int) -> tuple[int, int, int]:
    """Copy the finite rows of class BETWEEN: how many are kept now, and rows that are not finite, by term."""
    kept_explicit, kept_implicit, kept_rows, all_classes = kept
    classes = all_classes[start : start + explicit.size]
    num_whole = classes.size // 8
    eights = classes[: 8 * num_whole].view(np.int64)
    bad_explicit = bad_implicit = 0
    for eight in range(num_whole + 1):
        if eight < num_whole and not eights[eight] & _EIGHT_BETWEEN:
            continue
        for i in range(8 * eight, min(8 * eight + 8, classes.size)):
            if classes[i] != _BETWEEN:
                continue
            if not math.isfinite(explicit[i]):
                bad_explicit += 1
            elif not math.isfinite(implicit[i]):
                bad_implicit += 1
            else:
                kept_explicit[num_kept] = explicit[i]
                kept_implicit[num_kept] = implicit[i]
                kept_rows[num_kept] = start + i
                num_kept += 1
    return num_kept, bad_explicit, bad_implicit


@compiled
def band_scan(explicit: FloatArray, implicit: FloatArray, absolute: bool, band: Band, kept: Kept) -> Counts:  # noqa: FBT001
    """Rows above, rows kept, rows whose explicit term is not finite, further ones whose implicit term is not."""
    num_above = num_kept = bad_explicit = bad_implicit = 0
    for start in range(0, explicit.size, _CHUNK):
        part_e, part_i = explicit[start : start + _CHUNK], implicit[start : start + _CHUNK]
        num_above += _classify(part_e, part_i, absolute, band, kept[3][start : start + _CHUNK])
        num_kept, bad_e, bad_i = _keep(part_e, part_i, start, kept, num_kept)
        bad_explicit += bad_e
        bad_implicit += bad_i
    return num_above, num_kept, bad_explicit, bad_implicit


@compiled
def survey_scan(
    explicit: FloatArray,
    implicit: FloatArray,
    absolute: bool,  # noqa: FBT001
    band: Band,
    kept: Kept,
    sums: tuple[Sums, Sums],
) -> Counts:
    """As band_scan, and adds the terms of the finite rows to their sums while the chunk is in the first cache."""
    num_above = num_kept = bad_explicit = bad_implicit = 0
    for start in range(0, explicit.size, _CHUNK):
        part_e, part_i = explicit[start : start + _CHUNK], implicit[start : start + _CHUNK]
        num_above += _classify(part_e, part_i, absolute, band, kept[3][start : start + _CHUNK])
        num_kept, bad_e, bad_i = _keep(part_e, part_i, start, kept, num_kept)
        if bad_e + bad_i:
            bad_explicit += bad_e
            bad_implicit += bad_i
            finite = np.isfinite(part_e) & np.isfinite(part_i)
            _add_chunk(part_e[finite], False, sums[0])  # noqa: FBT003
            _add_chunk(part_i[finite], absolute, sums[1])
        else:
            _add_chunk(part_e, False, sums[0])  # noqa: FBT003
            _add_chunk(part_i, absolute, sums[1])
    return num_above, num_kept, bad_explicit, bad_implicit
