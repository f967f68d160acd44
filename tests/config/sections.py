"""Configs that the tests of the config start from."""

from typing import Any

import pytest

from pipeline.config import parse_config
from pipeline.errors import ConfigError

GOOD = {
    "source": {"path": "pairs.jsonl"},
    "policy": {"model": "m"},
    "reward": {"backend": "columns"},
    "scored": "scored",
    "select": {"fraction": 0.4},
    "output": {"path": "subset"},
}
ALONE = {"scored": "scored", "output": {"path": "subset"}}
"""A config of one output, to which a preset adds the rest."""


def changed(**sections: Any) -> dict[str, Any]:
    """The good config with other sections."""
    return {**GOOD, **sections}


def assert_refused(config: dict[str, Any], parts: list[str]) -> None:
    """The error names each of these parts: keys, what was got, what to do."""
    with pytest.raises(ConfigError) as error:
        parse_config(config)
    for part in parts:
        assert part in str(error.value)
