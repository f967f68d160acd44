"""The formats that alignpot reads, by the name that `source.format` takes, and which of them a table is of.

A format is left out where columns that it needs are missing. Each of the others says whether it claims the table. One
claim decides. None or several end with a SourceError that names the values of `source.format` to choose from.
"""

import difflib
from collections.abc import Sequence
from typing import Final

from pipeline.errors import ConfigError, SchemaError, SourceError
from pipeline.shown import shown
from pipeline.sources.columns import Columns
from pipeline.sources.messages import IMPLICIT, MESSAGES, SCORED
from pipeline.sources.ranked import BINARIZED, CANDIDATES, JUDGED, RESPONSES
from pipeline.sources.rows import Format, Row
from pipeline.sources.texts import STRINGS, TRANSCRIPT

AUTO: Final = "auto"
SAMPLE_ROWS: Final = 64

_ALL: Final = (MESSAGES, IMPLICIT, SCORED, STRINGS, TRANSCRIPT, BINARIZED, CANDIDATES, RESPONSES, JUDGED)
FORMATS: Final[dict[str, Format]] = {known.name: known for known in _ALL}


def check_format_name(name: str) -> None:
    """Raise a ConfigError that names the nearest formats, unless `name` is a format or auto."""
    if name == AUTO or name in FORMATS:
        return
    near = difflib.get_close_matches(name, [AUTO, *FORMATS], n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise ConfigError(f"source.format {name!r} is unknown{hint} Known: {', '.join([AUTO, *FORMATS])}.")


def detect(columns: Columns, sample: Sequence[Row]) -> str:
    """Name of the one format that claims a table of these columns and sampled rows.

    Raises:
        SourceError: no format claims it, or more than one does.
    """
    names = [name for name, known in FORMATS.items() if known.matches(columns, sample)]
    if len(names) == 1:
        return names[0]
    if names:
        raise SourceError(
            f"the source can be read as {' or '.join(names)}: {described(columns)}. "
            f"Set source.format to one of: {', '.join(names)}."
        )
    known = "\n".join(f"  {name}: {known.about}" for name, known in FORMATS.items())
    raise SourceError(
        f"the source is of no known format: it has {described(columns)}.{_near_misses(columns)} "
        f"Rename its columns to fit one of these:\n{known}"
    )


def resolve_format(name: str, columns: Columns, sample: Sequence[Row]) -> str:
    """The format to read with: `name`, once its columns are there, or for auto the detected one.

    Raises:
        ConfigError: no such format.
        SchemaError: the table lacks columns that the named format needs.
        SourceError: auto finds none or several.
    """
    check_format_name(name)
    if name == AUTO:
        return detect(columns, sample)
    missing = FORMATS[name].needs(columns)
    if missing:
        raise SchemaError(
            f"source.format {name} needs {', '.join(missing)}; the source has {described(columns)}. "
            "Choose another source.format, or auto."
        )
    return name


def _near_misses(columns: Columns) -> str:
    """Columns whose names are nearly those that a format reads, and that the table lacks."""
    read = {name for known in FORMATS.values() for name in known.reads}
    wanted = sorted(read - {*columns})
    near = {name: difflib.get_close_matches(name, wanted, n=1, cutoff=0.75) for name in columns if name not in read}
    return "".join(f" {shown(name)}: did you mean {found[0]}?" for name, found in near.items() if found)


def described(columns: Columns) -> str:
    """The columns with their kinds, for a message."""
    return ", ".join(f"{shown(name)} ({kind})" for name, kind in columns.items()) or "no columns"
