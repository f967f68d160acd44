"""How the tasks of a selection are run: here in threads of this process, elsewhere perhaps on a cluster.

A task is a picklable function of one item. Results come back in the order of the items, so the outcome is the same
whatever runs them.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Passes(Protocol):
    """Runs a task over items."""

    @property
    def num_parts(self) -> int:
        """How many parts of a source are worth having."""
        ...

    def map(self, task: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
        """The results in the order of the items; the first error of a task is raised."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Runs tasks in threads of this process: numpy and Arrow leave the interpreter lock."""

    num_threads: int = min(8, os.cpu_count() or 1)

    @property
    def num_parts(self) -> int:
        """A few parts a thread, so that none waits long for the last."""
        return 8 * self.num_threads

    def map(self, task: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
        """The results in the order of the items, with few of them held at a time."""
        if self.num_threads == 1 or len(items) == 1:
            yield from map(task, items)
            return
        pending: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self.num_threads) as pool:
            try:
                for item in items:
                    pending.append(pool.submit(task, item))
                    if len(pending) >= 2 * self.num_threads:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
