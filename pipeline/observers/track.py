"""`run.track`: a function of the user's that gets what a command did, once, at its end."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.data.sealed import fingerprint_digest
from pipeline.errors import ConfigError
from pipeline.observers.facts import Facts
from pipeline.shown import shown

Tracker = Callable[[Mapping[str, Any]], object]


def tracker_of(name: str) -> Tracker:
    """The function `module:function`. The module may lie in the working directory.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    module, _, function = name.partition(":")
    here = os.getcwd()  # noqa: PTH109 - an entry of sys.path
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # noqa: BLE001 - a module of the user's may raise anything
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"run.track: {shown(name)} cannot be imported ({shown(why, 300)}). Give module:function of a module that "
            "is installed, or lies in the working directory; or leave the key out."
        ) from None
    if not callable(found):
        raise ConfigError(f"run.track: {shown(name)} is no function. Give module:function.")
    return found  # type: ignore[no-any-return]


def told(facts: Facts, status: str, error: str | None) -> dict[str, Any]:
    """What a tracker gets: plain values. jobs/TRACKING.md describes them."""
    return {
        "command": facts.command,
        "status": status,
        "error": error,
        "fingerprint": fingerprint_digest(facts.fingerprint) if facts.fingerprint else None,
        "config": dict(facts.config),
        "inputs": [data.url for data in facts.inputs],
        "outputs": [data.url for data in facts.outputs],
        "counts": dict(facts.counts),
        "figures": dict(facts.figures),
        "reports": dict(facts.reports),
    }
