"""JSON objects that end with a digest of the rest, so that a damaged one is refused."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pipeline.data.place import Place
from pipeline.errors import FingerprintError, IntegrityError

FORMAT: Final = 3  # layout of run.json, _SUCCESS.json and the parts; another number is another layout
ABSENT: Final = "nothing"
_SEAL: Final = "seal"
_MEASURED: Final = "measured"


def sealed(value: Mapping[str, Any]) -> bytes:
    """Readable JSON with the layout's number and, as its `seal`, a digest of the rest; the same bytes for one value.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    whole = {"format": FORMAT, **value}
    whole[_SEAL] = fingerprint_digest(whole)
    return (json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_sealed(place: Place) -> dict[str, Any] | None:
    """The value that `sealed` wrote to `place`; None if there is no object.

    Raises:
        IntegrityError: it is damaged.
        FingerprintError: it has a layout that this version does not know.
    """
    data = place.read()
    if data is None:
        return None
    try:
        value = json.loads(data)
        layout, seal = value.pop("format", None), value.pop(_SEAL, None)
        is_whole = seal == fingerprint_digest({"format": layout, **value})
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise IntegrityError(f"{place} is damaged: not a JSON mapping. Restore it, or use another path.") from None
    if layout != FORMAT and (is_whole or seal is None):
        raise FingerprintError(
            f"{place} has layout {layout!r}; this version reads {FORMAT}. "
            "Use another path, or the version that wrote it."
        )
    if not is_whole:
        raise IntegrityError(f"{place} is damaged: its digest is another one. Restore it, or use another path.")
    return dict(value)


def digest(data: bytes) -> str:
    """blake2b of `data`, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """A short name of the fingerprint: 32 hex digits, independent of the order of keys."""
    text = json.dumps(as_json(fingerprint), sort_keys=True, separators=(",", ":"))
    return digest(text.encode())


def as_json(value: Mapping[str, Any]) -> Any:
    """The value as JSON gives it back, so that a tuple equals the list it is stored as."""
    return json.loads(json.dumps(value, allow_nan=False))


def measured(values: Sequence[float], within: float) -> dict[str, Any]:
    """An entry of a fingerprint that was measured. Two of them are the same if no value moves by more than `within`,
    or by this share of it where it is above 1.
    """
    return {_MEASURED: [*values], "within": within}


def agree(values: Sequence[float], others: Sequence[float], within: float) -> bool:
    """Whether two measurements are the same, as `measured` says."""
    pairs = list(itertools.zip_longest(values, others, fillvalue=math.nan))
    return all(abs(one - other) <= within * max(1.0, abs(one), abs(other)) for one, other in pairs)


def differences(stored: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every field that differs, as (dotted name, stored value, wanted value); "nothing" stands for a missing one."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        if _MEASURED in stored and agree(stored[_MEASURED], wanted.get(_MEASURED, ()), stored["within"]):
            return
        for key in sorted({*stored, *wanted}):
            below = f"{path}.{key}" if path else key
            yield from differences(stored.get(key, ABSENT), wanted.get(key, ABSENT), below)
    elif stored != wanted or isinstance(stored, bool) != isinstance(wanted, bool):
        yield path or "fingerprint", stored, wanted
