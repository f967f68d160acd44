"""The back end of each kind of reward section. An entry of its own is all that a further kind needs here."""

from collections.abc import Mapping
from typing import Any, Final, overload

from pipeline.config import (
    ClassifierReward,
    ColumnsReward,
    EndpointReward,
    FunctionReward,
    JudgeReward,
    Replicas,
    VllmJudgeReward,
    VllmReward,
)
from pipeline.rewards.backend import Backend
from pipeline.rewards.classifier import ClassifierBackend
from pipeline.rewards.endpoint import EndpointBackend
from pipeline.rewards.function import FunctionBackend
from pipeline.rewards.judge import JudgeBackend
from pipeline.rewards.vllm import VllmBackend
from pipeline.rewards.vllm_judge import VllmJudgeBackend

_BACKENDS: Final[Mapping[type[Replicas], type[Backend[Any]]]] = {
    ClassifierReward: ClassifierBackend,
    VllmReward: VllmBackend,
    EndpointReward: EndpointBackend,
    JudgeReward: JudgeBackend,
    VllmJudgeReward: VllmJudgeBackend,
    FunctionReward: FunctionBackend,
}


@overload
def reward_backend(section: Replicas) -> Backend[Any]: ...


@overload
def reward_backend(section: Replicas | ColumnsReward | None) -> Backend[Any] | None: ...


def reward_backend(section: Replicas | ColumnsReward | None) -> Backend[Any] | None:
    """The back end of a reward section; None if the source holds the rewards, or there are none."""
    return None if section is None or isinstance(section, ColumnsReward) else _BACKENDS[type(section)](section)


def reward_backends(members: Mapping[str, Any]) -> dict[str, Backend[Any]]:
    """The back ends of the members that are computed, by name, in their order."""
    found = ((name, reward_backend(section)) for name, section in members.items())
    return {name: backend for name, backend in found if backend is not None}
