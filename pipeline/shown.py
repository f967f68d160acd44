"""How text of users and their data is shown on a terminal or in a log: nothing in it acts there, none of it is long."""

import json
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

_LONGEST: Final = 80
_LONGEST_PATH: Final = 1_024
_LONGEST_LINE: Final = 2_000
_LONGEST_MESSAGE: Final = 40_000


def printable(text: str) -> str:
    r"""The text with control characters, bidi marks and lone surrogates as escapes such as \x1b; lines stay lines."""
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped)


def shown(value: Any, longest: int = _LONGEST) -> str:
    """A value on one line of at most `longest` characters, its middle left out if it has more."""
    text = printable(_cut(str(value), longest)).replace("\n", "\\n")
    return _cut(text, longest)


def quoted(value: Any) -> str:
    """As `shown`, the way that Python would write it: text in quotes."""
    return shown(repr(value))


def shown_path(path: Any) -> str:
    """As `shown`, with room for a path or URL."""
    return shown(path, _LONGEST_PATH)


def listed(values: Sequence[Any], most: int = 10, show: Callable[[Any], str] = shown) -> str:
    """The first values, as `shown`, and how many more there are."""
    more = f" and {len(values) - most:,} more" if len(values) > most else ""
    return ", ".join(map(show, values[:most])) + more


def message(text: str) -> str:
    """The text of an error, which may have several lines: printable, and cut where a line or the whole is too long."""
    return "\n".join(_cut(line, _LONGEST_LINE) for line in printable(_cut(text, _LONGEST_MESSAGE)).split("\n"))


class LogFormatter(logging.Formatter):
    """Writes a record so that it cannot act on a terminal nor, if the record is ours, look like another one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The line of the record; one of ours stays one line."""
        line = super().formatMessage(record)
        return line.replace("\n", "\\n") if record.name.startswith("pipeline.") else line

    def format(self, record: logging.LogRecord) -> str:
        """The whole record, with its traceback if there is one."""
        return printable(super().format(record))


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time (UTC), level, logger, message, and the fields that it carries."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole record, with its traceback if there is one."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _cut(text: str, longest: int) -> str:
    tail = longest // 4
    return text if len(text) <= longest else f"{text[: longest - tail - 3]}...{text[-tail:]}"
