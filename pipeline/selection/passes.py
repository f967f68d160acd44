"""How passes over the parts of a source are run: here in threads of this process, elsewhere perhaps on a cluster.

A task is a picklable function of one part. Its results come back in the order of the parts, so that merging them gives
the same whatever runs them.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pipeline.selection.source import Part

T = TypeVar("T")


class Passes(Protocol):
    """Runs a task over parts."""

    @property
    def num_parts(self) -> int:
        """How many parts are worth having."""
        ...

    def run(self, task: Callable[[Part], T], parts: Sequence[Part]) -> Iterator[T]:
        """The results in the order of the parts; the first error of a task is raised."""
        ...

    def map(self, task: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
        """The same for other pieces of work."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Runs tasks in threads of this process: numpy, Arrow and the compiled kernels leave the interpreter lock."""

    num_threads: int = min(8, os.cpu_count() or 1)

    @property
    def num_parts(self) -> int:
        """A few parts a thread, so that none waits long for the last."""
        return 8 * self.num_threads

    def run(self, task: Callable[[Part], T], parts: Sequence[Part]) -> Iterator[T]:
        """The results in the order of the parts."""
        yield from self.map(task, parts)

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
