"""Functions as Ray tasks. An error of ours travels to the driver as data and is raised there, as in actors."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import ray

from pipeline.errors import AlignpotError

A = TypeVar("A")
T = TypeVar("T")

_PARTS_PER_CPU: Final = 4
_MAX_RETRIES: Final = 3


class RayTasks:
    """Runs the tasks of a selection on the Ray that this process has joined.

    The tasks are the same as those that threads run on one machine. Results are merged in the same order.
    """

    @property
    def num_parts(self) -> int:
        """A few parts for each CPU of the cluster, so that no CPU waits long for the last part."""
        return _PARTS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, task: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
        """The results in the order of the items."""
        shared = ray.put(task)
        most_pending = 2 * self.num_parts
        attempt = ray.remote(_attempt).options(num_cpus=1, max_retries=_MAX_RETRIES)
        pending: deque[Any] = deque()
        for item in items:
            pending.append(attempt.remote(shared, item))
            if len(pending) >= most_pending:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())


def call_on_cluster(function: Callable[[A], T], argument: A, **reserved: Any) -> T:
    """`function(argument)` on some node of the cluster, with these options of a Ray task."""
    attempt = ray.remote(_attempt).options(**reserved)
    found: T = _result(attempt.remote(function, argument))
    return found


def _attempt(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except AlignpotError as error:
        return error


def _result(reference: Any) -> Any:
    value = ray.get(reference)
    if isinstance(value, AlignpotError):
        raise value
    return value
