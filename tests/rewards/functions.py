"""Functions of a user, as the tests name them in `reward.function`."""

import os
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def length(rows: list[Row], *, per: float = 1.0) -> list[float]:
    return [len(row["response"][-1]["content"]) / per for row in rows]


def equals_reference(rows: list[Row]) -> list[bool]:
    return [row["response"][-1]["content"] == row["reference"] for row in rows]


def by_word(rows: list[Row]) -> list[Any]:
    """The number of words, or what the first word asks for."""
    found: list[Any] = []
    for row in rows:
        row["prompt"].clear()  # a row is the function's own
        word, *others = row["response"][-1]["content"].split()
        begun = time.monotonic()
        while word == "hang" and time.monotonic() < begun + 60:
            time.sleep(0.01)
        if word == "die":
            os._exit(3)
        if word == "raise":
            raise ValueError(f"never shown: {row}")
        found.append({"nan": float("nan"), "none": None, "text": "1.0"}.get(word, len(others) + 1))
        found += [0.0] if word == "long" else []
    return found


def broken(rows: list[Row]) -> list[float]:
    return [row["no such column"] for row in rows]


def noted(rows: list[Row], *, folder: str) -> list[float]:
    """Lengths; the name of a file says what was asked for."""
    (Path(folder) / "-".join([*(row["id"] for row in rows)])).touch()
    return length(rows)


def picky(rows: list[Row]) -> list[float | None]:
    """Lengths, and nothing for the shorter answers."""
    return [found if found > 30 else None for found in length(rows)]


def nothing(rows: list[Row]) -> list[None]:
    return [None for _ in rows]
