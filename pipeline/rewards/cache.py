"""Answers that cost money, kept on storage: a rerun or another selection pays only for what is missing.

An answer is found by what it depends on: a *scope* (what identifies the model and how it is served) and the full
request. Each has a folder, or a key, of a digest. New answers are collected for some seconds and written as one object,
a *segment*. Its name is the digest of its bytes, so it is created once, and one that is torn or changed is seen and
left out: its answers are paid for again. Nothing is ever overwritten, and any number of processes may write.

A `Cache` reads all segments of its scope when it is made: some 100 bytes of memory for a reward, more for a text.
"""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Run, Storage
from pipeline.data.commit import check_writable, create
from pipeline.data.place import Place, in_order
from pipeline.data.sealed import digest

_SUFFIX: Final = ".parquet"
_SCHEMA: Final = pa.schema([("request", pa.binary(16)), ("answer", pa.string())])
_FLUSH_S: Final = 10.0
_NUM_READERS: Final = 16

_log = logging.getLogger(__name__)


def cache_place(run: Run, storage: Storage) -> Place | None:
    """The folder of paid answers, if the config names one. Raises a ConfigError if it cannot be one."""
    return None if run.cache is None else Place.open(run.cache, storage)


def check_cache(run: Run, storage: Storage) -> None:
    """Check that answers can be kept where the config says. Raises as `check_writable`."""
    place = cache_place(run, storage)
    if place is not None:
        check_writable(place)


class Cache:
    """The answers of one scope.

    Args:
        place: the folder of all scopes, `run.cache`; None keeps nothing.
        scope: JSON-ready facts on which every answer depends, such as the model's name and version.

    Raises an AlignpotError if the folder cannot be read.
    """

    def __init__(self, place: Place | None, scope: Mapping[str, Any]) -> None:
        self._place = None if place is None else place / digest(_canonical(scope))
        self._new: dict[bytes, str] = {}
        self._unwritten: dict[bytes, str] = {}
        self._flushed_at = time.monotonic()
        self._keys, self._answers = self._read()

    def get(self, request: Any) -> Any:
        """The answer to a request; None if there is none."""
        key = _key(request)
        found = self._new.get(key)
        if found is None:
            at = int(np.searchsorted(self._keys, np.void(key)))
            if at == len(self._keys) or self._keys[at].tobytes() != key:
                return None
            found = self._answers[at].as_py()
        return json.loads(found)

    def put(self, request: Any, answer: Any) -> None:
        """Keep an answer, which is JSON-ready and not None. Writes to storage what is older than some seconds."""
        if self._place is None:
            return
        key, text = _key(request), json.dumps(answer, allow_nan=False)
        self._new[key] = text
        self._unwritten[key] = text
        if time.monotonic() - self._flushed_at > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the answers that are not on storage yet. Raises an AlignpotError if they cannot be written."""
        if self._unwritten and self._place is not None:
            table = pa.table([[*self._unwritten], [*self._unwritten.values()]], schema=_SCHEMA)
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            data = sink.getvalue().to_pybytes()
            create(self._place / f"{digest(data)}{_SUFFIX}", data)
        self._unwritten = {}
        self._flushed_at = time.monotonic()

    def _read(self) -> tuple[Any, pa.ChunkedArray]:
        """The keys of all segments, sorted, and their answers. The order of segments does not matter."""
        place = self._place
        names = [] if place is None else sorted(name for name in place.sizes() if name.endswith(_SUFFIX))
        tables = [_SCHEMA.empty_table()]
        for name, table in zip(names, in_order(self._segment, names, _NUM_READERS), strict=True):
            if table is None:
                _log.warning("run.cache: %s/%s is damaged, and left out; its answers are asked for again", place, name)
            else:
                tables.append(table)
        table = pa.concat_tables(tables).combine_chunks().sort_by([("request", "ascending"), ("answer", "ascending")])
        keys = np.frombuffer(b"".join(table["request"].to_pylist()), dtype="V16")
        return keys, table["answer"]

    def _segment(self, name: str) -> pa.Table | None:
        assert self._place is not None  # noqa: S101
        data = (self._place / name).read()
        if data is None or f"{digest(data)}{_SUFFIX}" != name:
            return None
        return pq.read_table(pa.BufferReader(data))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _key(request: Any) -> bytes:
    return bytes.fromhex(digest(_canonical(request)))
