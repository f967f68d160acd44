"""Tasks of a selection on Ray: each reads its part of the dataset by itself.

Tasks are the same as those that threads run on one machine, and their results are merged in the same order. An error
of ours travels to the driver as data, as in scoring.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import ray

from pipeline.errors import AlignpotError
from pipeline.steps.work import Failure

T = TypeVar("T")

_PARTS_PER_CPU: Final = 4
_MAX_RETRIES: Final = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RayTasks:
    """Runs tasks on the Ray that this process has joined."""

    @property
    def num_parts(self) -> int:
        """A few parts a CPU of the cluster, so that none waits long for the last."""
        return _PARTS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, task: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
        """The results in the order of the items."""
        shared = ray.put(task)
        most_pending = 2 * self.num_parts
        pending: deque[Any] = deque()
        for item in items:
            pending.append(_attempt.remote(shared, item))
            if len(pending) >= most_pending:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())


@ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)  # type: ignore[untyped-decorator]
def _attempt(task: Callable[[Any], Any], item: Any) -> Any:
    try:
        return task(item)
    except AlignpotError as error:
        return Failure(kind=type(error).__name__, message=str(error))


def _result(reference: Any) -> Any:
    value = ray.get(reference)
    if isinstance(value, Failure):
        raise value.as_error()
    return value
