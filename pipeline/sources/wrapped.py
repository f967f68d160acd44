"""JSON files of one object that holds the rows in a list, such as {"version": 1, "data": [...]}."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Final

from pipeline.shown import listed
from pipeline.sources.bounds import BadFile

_USUAL: Final = re.compile(r"data|rows|instances|examples|items|records|samples|train|test|valid|dev|eval")
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_LIST: Final = re.compile(r"\[[ \t\r\n]*(?=\{)")
_DECODER: Final = json.JSONDecoder()
_REST_BYTES: Final = 1 << 20


def list_of_rows(head: bytes) -> tuple[str, int] | None:
    """The name of the list that holds the rows of a file, and the place after its bracket; None for JSON Lines.

    head: the first bytes of the file, without a mark and blanks before the object. If its first line is a whole object
    with more below it, the file is JSON Lines. If it is all that there is, the list must have a usual name.
    """
    line, _, more = head.partition(b"\n")
    is_line = not more.strip()
    if not is_line and _is_json(line):
        return None
    text = head.decode("latin-1")
    for name, place in _members(text, 1):
        found = _LIST.match(text, place)
        keys = _keys(text, found.end()) if found else None
        is_usual = _USUAL.match(name) or (keys is not None and not is_line)
        if found and is_usual and not {"role", "from"} & {*(keys or ())}:
            return name, place + 1
    return None


def check_rest(name: str, rest: bytes, read: Callable[[int], bytes]) -> None:
    """Raise BadFile unless the object ends after its list of this name, or after members that hold no rows."""
    text = (rest + read(_REST_BYTES)).decode("latin-1")
    place = _end_of_blank(text, 0)
    members = [*_members(text, place + 1)] if text.startswith(",", place) else [("", place)]
    others = [other for other, at in members if _LIST.match(text, at)]
    if others:
        raise BadFile(f"holds several lists of rows: {listed([name, *others])}; write each one into a file of its own")
    end = members[-1][1]
    if not text.startswith("}", end) or text[end + 1 :].strip():
        raise BadFile(f"goes on after its list {listed([name])}; write one JSON array, or one JSON object a line")


def _members(text: str, place: int) -> Iterator[tuple[str, int]]:
    """The names of the members of an object and the places of their values; without a name, the place after the last.

    Ends where the text is no JSON, or is cut.
    """
    try:
        while text.startswith('"', place := _end_of_blank(text, place)):
            name, place = _DECODER.raw_decode(text, place)
            place = _end_of_blank(text, place)
            if not text.startswith(":", place):
                return
            place = _end_of_blank(text, place + 1)
            yield str(name).encode("latin-1", "replace").decode("utf-8", "replace"), place
            place = _end_of_blank(text, _DECODER.raw_decode(text, place)[1])
            if not text.startswith(",", place):
                yield "", place
                return
            place += 1
    except (ValueError, RecursionError):
        return


def _keys(text: str, place: int) -> list[str] | None:
    """The names in the object at this place; None if it is no JSON, or is cut."""
    try:
        return [*_DECODER.raw_decode(text, place)[0]]
    except (ValueError, RecursionError):
        return None


def _end_of_blank(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    return found.end() if found else place


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
