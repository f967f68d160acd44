"""Choose the preference pairs a language model can still learn most from, at scale, on Ray.

The names below are the public API; each is imported when it is first used, so that `import pipeline` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pipeline.api import (
        audit,
        calibrate,
        compare,
        export,
        potential,
        prompts,
        publish,
        push,
        read_pairs,
        reward,
        score,
        select,
        self_play,
    )
    from pipeline.errors import AlignpotError

__version__ = "0.1.0"

__all__ = [
    "AlignpotError",
    "audit",
    "calibrate",
    "compare",
    "export",
    "potential",
    "prompts",
    "publish",
    "push",
    "read_pairs",
    "reward",
    "score",
    "select",
    "self_play",
]

_MODULES: Final = dict.fromkeys(__all__, "pipeline.api") | {"AlignpotError": "pipeline.errors"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
