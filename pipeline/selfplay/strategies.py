"""What the policy is asked when it turns a prompt into another one: one file a strategy, with a version.

A file opens with `version: N` and a blank line; `{context}` and `{prompt}` are filled in. The digest is that of the
whole text, and is part of the fingerprint of every prompt made with it.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from pipeline.config import Strategy
from pipeline.errors import IntegrityError

_HEADER: Final = re.compile(r"\Aversion: (\d+)\n\n")
_PLACES: Final = re.compile(r"\{(context|prompt)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The request that makes new prompts by one strategy."""

    version: int
    text: str
    digest: str

    def filled(self, prompt: str, context: str = "") -> str:
        """The request for this prompt; `context` tells what was said before it, and ends with a blank line."""
        values = {"prompt": prompt, "context": context}
        return _PLACES.sub(lambda place: values[place[1]], self.text)


@cache
def template_of(strategy: Strategy) -> Template:
    """The template of a strategy.

    Raises:
        IntegrityError: the installed file has no header or lacks a place to fill in.
    """
    path = Path(__file__).parent / "templates" / f"{strategy}.txt"
    whole = path.read_text(encoding="utf-8")
    header = _HEADER.match(whole)
    if header is None or {*_PLACES.findall(whole)} != {"context", "prompt"}:
        raise IntegrityError(f"template {path.name} is damaged. Install alignpot again.")
    digest = hashlib.sha256(whole.encode()).hexdigest()[:32]
    return Template(version=int(header[1]), text=whole[header.end() :].strip(), digest=digest)


def template_fingerprint(strategies: Sequence[Strategy]) -> dict[str, dict[str, int | str]]:
    """Version and digest of each strategy's template, by strategy."""
    templates = {name: template_of(name) for name in sorted(strategies)}
    return {name: {"version": each.version, "digest": each.digest} for name, each in templates.items()}
