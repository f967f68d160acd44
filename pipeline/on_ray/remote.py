"""One call on some node of the cluster, with GPUs of its own."""

from collections.abc import Callable
from typing import TypeVar

import ray

from pipeline.errors import AlignpotError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def call_on_cluster(
    function: Callable[[Argument], Result], argument: Argument, *, num_gpus: float, num_cpus: float
) -> Result:
    """`function(argument)` as a Ray task; an error of ours is raised here as it was there."""
    found = ray.get(ray.remote(_attempt).options(num_gpus=num_gpus, num_cpus=num_cpus).remote(function, argument))
    if isinstance(found, AlignpotError):
        raise found
    return found  # type: ignore[no-any-return]


def _attempt(function: Callable[[Argument], Result], argument: Argument) -> Result | AlignpotError:
    try:
        return function(argument)
    except AlignpotError as error:
        return error
