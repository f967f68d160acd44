"""Settings that reproduce the selections of the paper's authors (arXiv 2503.01864), by name.

Keys of the config win over those of its preset. The authors break ties by an unstable sort and keep their rows in
ascending order of score; here ties go by id, and rows keep the order of the scored dataset.
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
    """The sections of a config over those of its preset; unchanged without a preset or with an unknown one."""
    preset = next((sections for name, sections in PRESETS.items() if name == data.get("preset")), {})
    merged = dict(data)
    for section, defaults in preset.items():
        given = data.get(section) or {}
        if not isinstance(given, Mapping) or (section == "objective" and given.get("name") not in (None, "simpo")):
            continue
        if section == "select" and given.get("stats_from") is not None:
            defaults = {}  # noqa: PLW2901 - the former selection brings the whole rule
        elif section == "select" and given.get("k") is not None:
            defaults = {"seed": defaults["seed"]}  # noqa: PLW2901 - k takes the place of the fraction
        merged[section] = {**defaults, **given}
    return merged
