"""The digest of a pair's or a prompt's content, which is its id where the source names none."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.rows import Turn

DIGEST_CHARS: Final = 32
_FIRST_UNESCAPED: Final = 32
_ESCAPES: Final = {code: json.dumps(chr(code))[1:-1].encode() for code in (*range(_FIRST_UNESCAPED), *b'"\\')}
_GROWTH: Final = np.array([len(_ESCAPES.get(code, b" ")) - 1 for code in range(256)])


def content_digest(
    prompt: Sequence[Turn], chosen: Sequence[Turn], rejected: Sequence[Turn], tools: str | None = None
) -> str:
    """First 32 hex digits of the SHA-256 of the pair as canonical JSON: sorted keys, no spaces, UTF-8.

    Depends on nothing but the turns and the text of the tools. Lone surrogates, which the reader drops as
    undecodable_text, are hashed as they are rather than raise.
    """
    turns = {
        name: [{"content": turn["content"], "role": turn["role"]} for turn in side]
        for name, side in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected))
    }
    return json_digest({**turns, "tools": tools})


def prompt_digest(prompt: Sequence[Turn]) -> str:
    """The same of a prompt alone, which is its id where the source names none."""
    return json_digest({"prompt": [{"content": turn["content"], "role": turn["role"]} for turn in prompt]})


def json_digest(value: Any) -> str:
    """First 32 hex digits of the SHA-256 of a value as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARS]


def content_digests(prompt: pa.Array, chosen: pa.Array, rejected: pa.Array) -> list[str]:
    """`content_digest` of each row of three columns of messages, without tools."""
    sides = [_json_of(side) for side in (chosen, prompt, rejected)]
    texts = pc.binary_join_element_wise(
        '{"chosen":[', sides[0], '],"prompt":[', sides[1], '],"rejected":[', sides[2], '],"tools":null}', ""
    )
    return [hashlib.sha256(text).hexdigest()[:DIGEST_CHARS] for text in texts.cast(pa.binary()).to_pylist()]


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
