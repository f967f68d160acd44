"""The metrics and the ways to set the ratio as text, for people who choose one."""

from collections.abc import Iterator

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
