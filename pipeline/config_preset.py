"""Settings that reproduce the selections of the paper's authors (arXiv 2503.01864), by name.

What the config says itself goes first. The authors break ties by an unstable sort and keep their rows in ascending
order of score; here ties go by id and rows keep the order of the scored dataset.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

PresetName = Literal["paper", "paper-selfplay"]

_PAPER: Final[Mapping[str, Mapping[str, Any]]] = {
    "tokens": {"preset": "paper"},
    "objective": {"name": "simpo"},
    "metric": {
        "name": "potential",
        "weight": 1.0,
        "normalise": "zscore",
        "explicit": "candidates",
        "implicit": "absolute",
    },
    "select": {"fraction": 0.4, "seed": 42},
}

PRESETS: Final[Mapping[PresetName, Mapping[str, Mapping[str, Any]]]] = {
    "paper": _PAPER,
    "paper-selfplay": {
        **_PAPER,
        "metric": {**_PAPER["metric"], "weight": 2.5},
        "select": {"fraction": 0.25, "seed": 42},
    },
}


def with_preset(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sections of a config with those of its preset laid under them; unchanged where it names no known one."""
    preset = next((sections for name, sections in PRESETS.items() if name == data.get("preset")), None)
    if preset is None:
        return data
    merged = dict(data)
    for section, defaults in preset.items():
        given = data.get(section) or {}
        if not isinstance(given, Mapping):
            continue
        if section == "objective" and given.get("name") not in (None, "simpo"):
            continue
        merged[section] = {**_applicable(section, defaults, given), **given}
    return merged


def _applicable(section: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The defaults that do not contradict what is given: a former selection brings its own rule, k its own number."""
    if section == "select" and given.get("stats_from") is not None:
        return {}
    if section == "select" and given.get("k") is not None:
        return {key: value for key, value in defaults.items() if key != "fraction"}
    return defaults
