"""The digest of a pair's or a prompt's content, which is its id where the source names none."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from pipeline.sources.rows import Turn

DIGEST_CHARS: Final = 32


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
