"""JSON objects that end with a digest of the rest, so that a damaged one is refused.

A value may be `Records`. They are written and read some at a time: there may be a million.
"""

import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pipeline.data.place import Place
from pipeline.data.records import Records
from pipeline.errors import FingerprintError, IntegrityError

FORMAT: Final = 3  # layout of run.json, _SUCCESS.json and the parts; another number is another layout
ABSENT: Final = "nothing"
_SEAL: Final = "seal"
_MEASURED: Final = "measured"
_CHUNK_BYTES: Final = 2**20
_RECORD_END: Final = b"\n  },"
_LIST_END: Final = re.compile(rb"\n \],?\n")


def sealed(value: Mapping[str, Any]) -> bytes:
    """Readable JSON with the layout's number and, as its `seal`, a digest of the rest; the same bytes for one value.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    whole = {"format": FORMAT, **value}
    whole[_SEAL] = fingerprint_digest(whole)
    data = io.BytesIO()
    for number, (name, each) in enumerate(whole.items()):
        data.write(f"{',' if number else '{'}\n {json.dumps(name, ensure_ascii=False)}: ".encode())
        if isinstance(each, Records) and each:
            data.write(b"[")
            for i, rows in enumerate(each.rows()):
                data.write(b"," * (i > 0) + _indented(rows)[1:-3])
            data.write(b"\n ]")
        else:
            data.write(_indented([] if isinstance(each, Records) else each))
    data.write(b"\n}\n")
    return data.getvalue()


def _indented(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).replace("\n", "\n ").encode()


def read_sealed(place: Place, records: str = "") -> dict[str, Any] | None:
    """The value that `sealed` wrote to `place`; None if there is no object.

    records: name of a list that becomes `Records`, of dicts.

    Raises:
        IntegrityError: it is damaged.
        FingerprintError: it has a layout that this version does not know.
    """
    data = place.read()
    if data is None:
        return None
    try:
        value = _loaded(data, records)
        layout, seal = value.pop("format", None), value.pop(_SEAL, None)
        is_whole = seal == fingerprint_digest({"format": layout, **value})
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise IntegrityError(f"{place} is damaged: not a JSON mapping. Restore it, or use another path.") from None
    if layout != FORMAT and (is_whole or seal is None):
        raise FingerprintError(
            f"{place} has layout {layout!r}; this version reads {FORMAT}. "
            "Use another path, or the version that wrote it."
        )
    if not is_whole:
        raise IntegrityError(f"{place} is damaged: its digest is another one. Restore it, or use another path.")
    return dict(value)


def _loaded(data: bytes, records: str) -> Any:
    """The value in `data`. A list of records in the layout of `sealed` is cut out and read some at a time."""
    found = re.search(rb'\n "%s": \[(?=\n  \{)' % records.encode(), data) if records else None
    end = None if found is None else _LIST_END.search(data, found.end())
    if found is None or end is None:
        value = json.loads(data)
        if isinstance(value.get(records), list):
            value[records] = Records.of(value[records], dict)
        return value
    value = json.loads(data[: found.end()] + data[end.start() :])
    value[records] = Records.of(_records(data, found.end(), end.start()), dict)
    return value


def _records(data: bytes, start: int, end: int) -> Iterator[Any]:
    while start < end:
        cut = data.find(_RECORD_END, min(start + _CHUNK_BYTES, end), end)
        stop = end if cut < 0 else cut + len(_RECORD_END)
        yield from json.loads(b"[%b]" % data[start:stop].removesuffix(b","))
        start = stop


def digest(data: bytes) -> str:
    """blake2b of `data`, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """A short name of the fingerprint: 32 hex digits, independent of the order of keys."""
    hasher = hashlib.blake2b(digest_size=16)
    for number, (name, value) in enumerate(sorted(fingerprint.items())):
        hasher.update(f"{',' if number else '{'}{json.dumps(name)}:".encode())
        for text in _sorted(value):
            hasher.update(text.encode())
    hasher.update(b"}" if fingerprint else b"{}")
    return hasher.hexdigest()


def _sorted(value: Any) -> Iterable[str]:
    """The JSON of a value with sorted keys, in pieces."""
    if not isinstance(value, Records):
        yield json.dumps(as_json(value), sort_keys=True, separators=(",", ":"))
        return
    yield "["
    for number, rows in enumerate(value.rows()):
        yield "," * (number > 0) + json.dumps(rows, sort_keys=True, separators=(",", ":"), allow_nan=False)[1:-1]
    yield "]"


def as_json(value: Any) -> Any:
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
