"""The comparison as Markdown."""

from collections.abc import Sequence

from jobs.study.compare import Comparison, Standing
from jobs.study.trials import (
    ALL,
    CURVE,
    FALLBACK_WEIGHT,
    IMPLICIT,
    LINE,
    LINE_AND_IMPLICIT,
    RANDOM,
    RAW,
    TRUTH,
    StudySize,
    grid_name,
)
from pipeline.metrics.intervals import Interval
from pipeline.metrics.ratio import RATIO_METHODS

_FIXED = tuple(grid_name(weight) for weight in (0.0, 0.5, 1.0, 2.5))
_OTHERS = (LINE, CURVE, LINE_AND_IMPLICIT, RAW, IMPLICIT, RANDOM, ALL, TRUTH)
_NOTES = {
    grid_name(0.0): "w = 0, explicit only",
    grid_name(1.0): "w = 1, the paper's default",
    grid_name(2.5): "w = 2.5, the paper's for self-play",
    TRUTH: "true margin, known to no rule",
}


def summary_table(comparison: Comparison) -> str:
    """A row for each automatic method, some fixed weights and the baselines."""
    rules = [*RATIO_METHODS, *dict.fromkeys((comparison.best_fixed, *_FIXED)), *_OTHERS]
    rows = [_summary_row(comparison.standing(rule), comparison.best_fixed) for rule in rules]
    return markdown(("rule", "w", "utility", "minus the best fixed w", "lowest world", "refused"), rows)


def world_table(comparison: Comparison) -> str:
    """A row for each world: its best fixed weight, and the utility of every method and of some other rules."""
    rules = [*RATIO_METHODS, grid_name(0.0), grid_name(1.0), LINE, CURVE, RANDOM]
    rows = [
        (world, best, *(_in_world(comparison.standing(rule), world) for rule in rules))
        for world, best in comparison.best_of_world.items()
    ]
    return markdown(("world", "best fixed", *rules), rows)


def report(comparison: Comparison, size: StudySize) -> str:
    """Both tables with what they mean."""
    return "\n\n".join(
        (
            f"{comparison.num_seeds} seeds, {len(comparison.best_of_world)} worlds, objectives DPO and SimPO, Adam and "
            f"plain descent, fractions {' and '.join(f'{f:g}' for f in size.fractions)}. Utility 1 is the gain of the "
            f"best fixed w of a world in hindsight; brackets are 95 % intervals over seeds, and ± is half of that of "
            f"the difference from the best fixed w of the world. Where a method refuses the "
            f"data, w = {FALLBACK_WEIGHT:g} is taken.",
            summary_table(comparison),
            world_table(comparison),
        )
    )


def _summary_row(standing: Standing, best_fixed: str) -> tuple[str, ...]:
    lowest = min(standing.by_world, key=lambda world: standing.by_world[world])
    name = _NOTES.get(standing.rule, standing.rule)
    return (
        f"{name} (best fixed)" if standing.rule == best_fixed else name,
        "" if standing.weight is None else f"{standing.weight:.2f}",
        _interval(standing.utility),
        "" if standing.rule == best_fixed else _interval(standing.difference, sign="+"),
        f"{standing.by_world[lowest]:.2f} {lowest}",
        f"{standing.refused:.0%}" if standing.rule in RATIO_METHODS else "",
    )


def _in_world(standing: Standing, world: str) -> str:
    behind = standing.behind_in_world[world]
    return f"{standing.by_world[world]:.3f} ± {behind.high - behind.mean:.3f}"


def _interval(value: Interval, *, sign: str = "") -> str:
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
