"""Objectives, metrics and the ways to set the ratio as text, for people who choose one."""

from collections.abc import Iterator

from pipeline.metrics.objectives import OBJECTIVES
from pipeline.metrics.potential import METRICS
from pipeline.metrics.ratio import RATIO_METHODS


def describe_metrics() -> Iterator[str]:
    """One block of text per metric, then one per method of `weight: auto`: what it is and where it comes from."""
    yield "Metrics rank pairs, highest score first; explicit and implicit are the margins, chosen minus rejected."
    for name, metric in METRICS.items():
        yield f"\n{name}\n  formula  {metric.formula}\n  source   {metric.source}"
    yield "\nmetric.ratio sets the weight of the potential where metric.weight is auto."
    for method, ratio in RATIO_METHODS.items():
        labels = "" if not ratio.reads_labels else "\n  labels   read: it needs pairs that a margin contradicts"
        yield f"\n{method}\n  about    {ratio.about}\n  source   {ratio.source}{labels}"


def describe_objectives() -> Iterator[str]:
    """A legend, and one block of text per objective: formula, reference, defaults, typical values and source."""
    yield (
        "Implicit reward of a response y to a prompt x; the margin is chosen minus rejected.\n"
        "lp = log pi(y|x) and lp_ref = log pi_ref(y|x), summed over response tokens; n = response tokens; "
        "lr = lp - lp_ref."
    )
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
