"""The objectives as text, for people who choose one."""

from collections.abc import Iterator
from typing import Final

from pipeline.metrics.objectives import OBJECTIVES

_LEGEND: Final = (
    "Implicit reward of a response y to a prompt x; the margin is chosen minus rejected.\n"
    "lp = log pi(y|x) and lp_ref = log pi_ref(y|x), summed over response tokens; n = response tokens; lr = lp - lp_ref."
)


def describe_objectives() -> Iterator[str]:
    """A legend, and one block of text per objective: formula, reference, defaults, typical values and source."""
    yield _LEGEND
    for name, definition in OBJECTIVES.items():
        defaults = ", ".join(f"{parameter} {value:g}" for parameter, value in definition.defaults.items())
        lines = {
            "formula": definition.formula,
            "reference": "needed" if definition.reads_reference else "not needed",
            "defaults": defaults or "no parameters",
            "typical": definition.typical,
            "source": definition.source,
        }
        yield "\n".join(["", name, *(f"  {key:<9}  {text}" for key, text in lines.items())])
