"""What the stages did when: busy seconds of each, and how long explicit and implicit scoring ran at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.steps.work import Timing

Interval = tuple[float, float]

_EXPLICIT = frozenset({"reward"})
_IMPLICIT = frozenset({"policy", "reference"})


@dataclass(slots=True)
class Timeline:
    """Timings of all shards of a run, gathered as they are committed."""

    timings: list[Timing] = field(default_factory=list)

    def add(self, timings: Iterable[Timing]) -> None:
        """Take up the timings of one shard."""
        self.timings.extend(timings)

    def busy_s(self) -> dict[str, float]:
        """Seconds that the workers of each stage spent on shards, in the order the stages first ran."""
        busy: dict[str, float] = {}
        for t in sorted(self.timings, key=lambda t: t.started_s):
            busy[t.stage] = busy.get(t.stage, 0.0) + t.ended_s - t.started_s
        return busy

    def overlap_s(self) -> float:
        """Seconds in which a reward worker and a policy or reference worker were on shards at the same time."""
        explicit = _union((t.started_s, t.ended_s) for t in self.timings if t.stage in _EXPLICIT)
        implicit = _union((t.started_s, t.ended_s) for t in self.timings if t.stage in _IMPLICIT)
        return _common_s(explicit, implicit)


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _common_s(first: Sequence[Interval], second: Sequence[Interval]) -> float:
    """Seconds that lie in both of two sorted lists of intervals, each without overlaps of its own."""
    total, i, j = 0.0, 0, 0
    while i < len(first) and j < len(second):
        total += max(0.0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return total
