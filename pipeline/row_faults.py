"""An error that none of us raised while one row was at work: the row is dropped, and the log says what it was."""

import logging
from typing import Final

from pipeline.shown import shown

_log = logging.getLogger(__name__)
_told: Final[set[tuple[str, str]]] = set()


def tell_row_fault(error: BaseException, *, where: str, row: str) -> None:
    """Log the class of an error and the id or place of its row, never its text; once per class and `where`."""
    name = type(error).__name__
    if (where, name) not in _told:
        _told.add((where, name))
        _log.warning("%s: %s on row %s, which is dropped, as is every other like it", where, name, shown(row))
