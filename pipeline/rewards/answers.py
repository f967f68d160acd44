"""Answers of a service to rows: from the cache where it has them, else several rows a request."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pipeline.rewards.cache import Cache
from pipeline.rewards.http import BadAnswer, Failed

Row = TypeVar("Row")
T = TypeVar("T")


class Asked(Protocol):
    """What answers requests: a `Client` of a service, or an engine in this process."""

    def ask(self, path: str, bodies: Sequence[Any], read: Callable[[int, Any], T]) -> Iterator[tuple[int, T | Failed]]:
        """As `Client.ask`."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(Generic[Row]):
    """How a service is asked about rows, and how its answer is read.

    Attributes:
        path: put after a base URL.
        body_of: the request for some rows, JSON-ready. That for a row alone is its key in the cache.
        read: the answers in an answer to a request, in the order of its rows: each JSON-ready, or None for nothing.
            Raises as `read` of `Client.ask`.
        batch_rows: most rows of one request.
    """

    path: str
    body_of: Callable[[Sequence[Row]], Any]
    read: Callable[[Any], Sequence[Any]]
    batch_rows: int = 1


def ask_rows(client: Asked, cache: Cache, form: Form[Row], rows: Sequence[Row]) -> list[Any]:
    """Of each row its answer; Failed if the service fails on this row; None if it gives nothing for it, even alone.

    Rows with the same request are asked about once. A request that fails is split until the row is found that is to
    blame. Answers are cached as they come, whatever happens after. Raises as `Client.ask`.
    """
    keys = [form.body_of([row]) for row in rows]
    found = [cache.get(key) for key in keys]
    firsts: dict[str, int] = {}
    places = [firsts.setdefault(json.dumps(key), index) for index, key in enumerate(keys)]
    missing = [index for index in firsts.values() if found[index] is None]
    pending = [missing[begin : begin + form.batch_rows] for begin in range(0, len(missing), form.batch_rows)]
    doubted: set[int] = set()

    def answers_of(number: int, answer: Any) -> Sequence[Any]:
        values = form.read(answer)
        if len(values) != len(pending[number]):
            raise BadAnswer(f"{len(values)} answers to {len(pending[number])} rows")
        return values

    try:
        while pending:
            again: list[list[int]] = []
            bodies = [form.body_of([rows[index] for index in batch]) for batch in pending]
            for number, outcome in client.ask(form.path, bodies, answers_of):
                batch = pending[number]
                if isinstance(outcome, Failed) and len(batch) > 1:
                    again += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
                    continue
                for index, value in zip(batch, [outcome] if isinstance(outcome, Failed) else outcome, strict=True):
                    found[index] = value
                    if value is None and index not in doubted:
                        doubted.add(index)
                        again.append([index])
                    elif value is not None and not isinstance(value, Failed):
                        cache.put(keys[index], value)
            pending = again
    finally:
        cache.flush()
    return [found[place] for place in places]
