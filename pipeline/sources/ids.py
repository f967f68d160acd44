"""The id of a row: from the id column, or else the digest of its content."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.drops import DropRow, Reason
from pipeline.errors import SchemaError
from pipeline.schema import CHOSEN, PROMPT, REJECTED
from pipeline.sources.columns import Columns, plain_type
from pipeline.sources.rows import Turn
from pipeline.sources.turns import text_of

DIGEST_CHARS: Final = 32
_FIRST_UNESCAPED: Final = 32
_ESCAPES: Final = {code: json.dumps(chr(code))[1:-1].encode() for code in (*range(_FIRST_UNESCAPED), *b'"\\')}
_GROWTH: Final = np.array([len(_ESCAPES.get(code, b" ")) - 1 for code in range(256)])


def check_id_column(name: str, columns: Columns, schema: pa.Schema | None) -> None:
    """Raise a SchemaError unless the source has a column of this name that can hold ids."""
    if name not in columns:
        raise SchemaError(
            f"source.id_column {name!r} is not there; the source has {[*columns]}. "
            "Name a column with unique ids, or leave it out to use a hash of the content."
        )
    if schema is None:
        return
    plain = plain_type(schema.field(name).type)
    if not (pa.types.is_string(plain) or pa.types.is_integer(plain) or pa.types.is_null(plain)):
        raise SchemaError(f"source.id_column {name!r} is {plain}; wanted text or whole numbers.")


def id_of(value: Any) -> str:
    """The id that a row gives itself, or DropRow."""
    if value is None or value == "":
        raise DropRow(Reason.NULL_ID)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DropRow(Reason.ID_TYPE)
    return text_of(str(value))


def content_digest(
    prompt: Sequence[Turn], chosen: Sequence[Turn], rejected: Sequence[Turn], tools: str | None = None
) -> str:
    """`json_digest` of a pair. Depends on nothing but the turns and the text of the tools."""
    sides = {PROMPT: prompt, CHOSEN: chosen, REJECTED: rejected}
    return json_digest({**{name: _bare(side) for name, side in sides.items()}, "tools": tools})


def prompt_digest(prompt: Sequence[Turn]) -> str:
    """`json_digest` of a prompt alone, which is its id where the source names none."""
    return json_digest({PROMPT: _bare(prompt)})


def json_digest(value: Any) -> str:
    """First 32 hex digits of the SHA-256 of a value as canonical JSON: sorted keys, no spaces, UTF-8.

    Lone surrogates, which the reader drops as undecodable_text, are hashed as they are.
    """
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARS]


def content_digests(prompt: pa.Array, chosen: pa.Array, rejected: pa.Array) -> list[str]:
    """`content_digest` of each row of three columns of messages, without tools."""
    sides = [_json_of(side) for side in (chosen, prompt, rejected)]
    texts = pc.binary_join_element_wise(
        '{"chosen":[', sides[0], '],"prompt":[', sides[1], '],"rejected":[', sides[2], '],"tools":null}', ""
    )
    return [hashlib.sha256(text).hexdigest()[:DIGEST_CHARS] for text in texts.cast(pa.binary()).to_pylist()]


def _bare(turns: Sequence[Turn]) -> list[Turn]:
    return [{"content": turn["content"], "role": turn["role"]} for turn in turns]


def _json_of(messages: pa.Array) -> pa.Array:
    """The turns of each row as JSON objects between commas."""
    role, content = messages.flatten().flatten()
    turns = pc.binary_join_element_wise('{"content":"', _escaped(content), '","role":"', role, '"}', "")
    return pc.binary_join(pa.ListArray.from_arrays(messages.offsets, turns), ",")


def _escaped(texts: pa.Array) -> pa.Array:
    """The texts as they stand in JSON between the quotes; `texts` must have no nulls."""
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    raw = (data or pa.py_buffer(b""))[starts[0] : starts[-1]].to_pybytes()
    codes = np.frombuffer(raw, np.uint8)
    places = np.flatnonzero((codes < _FIRST_UNESCAPED) | (codes == ord('"')) | (codes == ord("\\")))
    grown = np.concatenate([[0], np.cumsum(_GROWTH[codes[places]])])
    starts = starts - starts[0]
    starts = starts + grown[np.searchsorted(places, starts)]
    for code in sorted({*codes[places].tolist()}, reverse=True):  # the backslash, which all escapes hold, comes first
        raw = raw.replace(bytes([code]), _ESCAPES[code])
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(raw))
