"""Rows of text files, one after another, in bounded memory: JSON Lines, JSON arrays and objects, CSV and TSV.

Every row comes as the bytes of a JSON object, with the place in the file at which it starts. A row of CSV has the names
in the head of its file and texts as values; an empty cell is null. A reader may start at the place of any row.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from pipeline.shown import listed
from pipeline.sources.bounds import CELL_BYTES, BadFile, lines, unpacked
from pipeline.sources.wrapped import check_rest, list_of_rows

JSONL: Final = "jsonl"
JSON_ARRAY: Final = "json_array"
JSON_OBJECT: Final = "json_object"
CSV: Final = "csv"
TSV: Final = "tsv"

_CHUNK_BYTES: Final = 1 << 20
_MARK: Final = b"\xef\xbb\xbf"  # before UTF-8
_BLANK: Final = _MARK + b" \t\r\n\v\f"
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)
"""A whole text, the quote of one that goes on after these bytes, or a bracket or comma."""

_Read = Callable[[int], bytes]


def records(
    file: Any, form: str, codec: str | None, mark: tuple[int, int] = (0, 0)
) -> tuple[str, Iterator[tuple[int, bytes]]]:
    """The form of the file, and its rows from `mark` on (a row and its place), each with its own place.

    Of JSON, which may be lines, an array, or an object that holds a list of rows, the first bytes decide.

    Raises:
        BadFile: a row is longer than CELL_BYTES, the file is a decompression bomb, or an array or CSV is damaged.
    """
    row, place = mark
    file.seek(0 if form in {CSV, TSV} else place)
    read, first, skipped = _peeked(unpacked(file, codec))
    text = first.lstrip(_BLANK)
    if form == JSON_ARRAY or (form == JSONL and place == 0 and text.startswith(b"[")):
        return JSON_ARRAY, _elements(read, place or skipped, row, _check_end, is_open=place > 0)
    if form == JSON_OBJECT and place > 0:
        return form, _elements(read, place, row, lambda _rest, _read: None, is_open=True)
    named = list_of_rows(text) if form in {JSONL, JSON_OBJECT} and place == 0 and text.startswith(b"{") else None
    if named is not None:
        name, start = named
        start += len(read(0)) - len(text)
        read = _before(first[start:], read)
        return JSON_OBJECT, _elements(read, skipped + start, row, partial(check_rest, name), is_open=True)
    if form == JSONL:
        return form, lines(read, place + skipped, row)
    delimiter = "\t" if form == TSV else max(",;\t", key=first.partition(b"\n")[0].decode("latin-1").count)
    rows = _csv_rows(read, delimiter, skipped, -1)
    head = _names(next(rows, (0, []))[1])
    if place:
        file.seek(place)
        rows = _csv_rows(file.read, delimiter, place, row)
    return form, _objects(rows, head)


def _peeked(read: _Read) -> tuple[_Read, bytes, int]:
    """The same function, the first bytes that it will give, and how many blank ones before them it will not."""
    skipped = 0
    while (first := read(_CHUNK_BYTES)) and not first.lstrip(_BLANK):
        skipped += len(first)
    return _before(first, read), first, skipped


def _before(first: bytes, read: _Read) -> _Read:
    """The same function, which gives these bytes before all others."""
    rest = [first]
    return lambda size: rest.pop() if rest else read(size)


def _names(head: list[str]) -> list[str]:
    """The names of the columns in the head of CSV."""
    if any("\ud800" <= letter <= "\udfff" for name in head for letter in name):
        raise BadFile("is not UTF-8; save it as CSV in UTF-8")
    twice = [name for name, count in Counter(head).items() if count > 1]
    if twice:
        raise BadFile(f"has columns of the same name: {listed(twice)}")
    return head


def _elements(
    read: _Read, offset: int, row: int, check_end: Callable[[bytes, _Read], None], *, is_open: bool
) -> Iterator[tuple[int, bytes]]:
    """The elements of an array. is_open: reading starts after its bracket. check_end: is given what follows it."""
    text, start, seen = b"", 0, 0
    depth = 1 if is_open else 0
    while chunk := read(max(_CHUNK_BYTES, len(text))):
        text, offset, seen, start = text[start:] + chunk, offset + start, seen - start, 0
        for token in _TOKEN.finditer(text, seen):
            mark = token[0][0]
            seen = token.end()
            if mark in b"{[":
                depth += 1
                start = seen if depth == 1 else start
            elif mark in b"}]":
                depth -= 1
            elif mark == b'"'[0] and seen == token.start() + 1:
                seen = token.start()  # the text goes on after these bytes
                break
            if (mark == b","[0] and depth == 1) or depth == 0:
                element = text[start : token.start()]
                if element.strip():
                    yield offset + start, element
                    row += 1
                start = seen
                if depth == 0:
                    check_end(text[seen:], read)
                    return
        else:
            seen = len(text)
        if len(text) - start > CELL_BYTES:
            raise BadFile(f"has an element of more than {CELL_BYTES} bytes in row {row} of its JSON array")
    raise BadFile("is cut short (its JSON array has no end)")


def _check_end(rest: bytes, read: _Read) -> None:
    while not rest.strip():
        rest = read(_CHUNK_BYTES)
        if not rest:
            return
    raise BadFile("goes on after the end of its JSON array; write one array, or one JSON object a line")


def _objects(rows: Iterator[tuple[int, list[str]]], head: list[str]) -> Iterator[tuple[int, bytes]]:
    """Rows of CSV as JSON objects. A row that does not fit the head is an array, which costs the row alone."""
    for place, cells in rows:
        fits = len(cells) == len(head)
        found = {name: cell or None for name, cell in zip(head, cells, strict=True)} if fits else cells
        yield place, json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _csv_rows(read: _Read, delimiter: str, offset: int, row: int) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row of CSV; lines without any are skipped."""
    start: int | None = None

    def texts() -> Iterator[str]:
        nonlocal start
        for place, line in _physical_lines(read, offset):
            start = place if start is None else start
            text = line.removeprefix(_MARK) if place == offset == 0 else line
            yield text.decode("utf-8", "surrogateescape")

    csv.field_size_limit(CELL_BYTES)
    try:
        for cells in csv.reader(texts(), delimiter=delimiter, strict=True):
            if cells:
                yield start or 0, cells
                row += 1
            start = None
    except csv.Error as error:
        raise BadFile(f"is no CSV in row {row} ({error})") from None


def _physical_lines(read: _Read, offset: int) -> Iterator[tuple[int, bytes]]:
    rest = b""
    while chunk := read(max(_CHUNK_BYTES, len(rest))):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield offset, line + b"\n"
            offset += len(line) + 1
        if len(rest) > CELL_BYTES:
            raise BadFile(f"has a line of more than {CELL_BYTES} bytes")
    if rest:
        yield offset, rest
