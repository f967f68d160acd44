"""Settings that reproduce the selections of the paper's authors (arXiv 2503.01864), by name.

Keys of the config win over those of its preset. The authors break ties by an unstable sort and keep their rows in
ascending order of score; here ties go by id, and rows keep the order of the scored dataset.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

PresetName = Literal["paper", "paper-selfplay"]
_Sections = Mapping[str, Mapping[str, Any]]


def _paper(weight: float, fraction: float) -> _Sections:
    return {
        "tokens": {"preset": "paper"},
        "objective": {"name": "simpo"},
        "metric": {
            "name": "potential",
            "weight": weight,
            "normalise": "zscore",
            "explicit": "candidates",
            "implicit": "absolute",
        },
        "select": {"fraction": fraction, "seed": 42},
    }


PRESETS: Final[Mapping[str, _Sections]] = {"paper": _paper(1.0, 0.4), "paper-selfplay": _paper(2.5, 0.25)}


def with_preset(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sections of a config over those of its preset; unchanged without a preset or with an unknown one."""
    name = data.get("preset")
    merged = dict(data)
    for section, defaults in (PRESETS.get(name, {}) if isinstance(name, str) else {}).items():
        given = data.get(section) or {}
        if not isinstance(given, Mapping) or (section == "objective" and given.get("name") not in (None, "simpo")):
            continue
        left_out: tuple[str, ...] = ()
        if section == "select" and given.get("stats_from") is not None:
            left_out = ("fraction", "seed")  # the former selection brings the whole rule
        elif section == "select" and given.get("k") is not None:
            left_out = ("fraction",)
        merged[section] = {**{key: value for key, value in defaults.items() if key not in left_out}, **given}
    return merged
