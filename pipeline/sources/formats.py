"""The formats that alignpot reads, by the name that `source.format` takes."""

import difflib
from typing import Final

from pipeline.errors import ConfigError
from pipeline.sources.judged import JUDGED
from pipeline.sources.messages import IMPLICIT, MESSAGES, SCORED
from pipeline.sources.ranked import BINARIZED, CANDIDATES, RESPONSES
from pipeline.sources.rows import Format
from pipeline.sources.strings import STRINGS
from pipeline.sources.transcript import TRANSCRIPT

AUTO: Final = "auto"

FORMATS: Final[dict[str, Format]] = {
    "messages": MESSAGES,
    "implicit": IMPLICIT,
    "scored": SCORED,
    "strings": STRINGS,
    "transcript": TRANSCRIPT,
    "binarized": BINARIZED,
    "candidates": CANDIDATES,
    "responses": RESPONSES,
    "judged": JUDGED,
}


def check_format_name(name: str) -> None:
    """Raise a ConfigError that names the nearest formats, unless `name` is a format or auto."""
    if name == AUTO or name in FORMATS:
        return
    near = difflib.get_close_matches(name, [AUTO, *FORMATS], n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise ConfigError(f"source.format {name!r} is unknown{hint} Known: {', '.join([AUTO, *FORMATS])}.")
