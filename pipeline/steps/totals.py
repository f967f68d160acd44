"""What the shards of a step took, summed up shard by shard, so that it stays small however many there are."""

import json
from dataclasses import dataclass, field
from typing import Final

from pipeline.progress import Figures
from pipeline.steps.work import ShardWork

_EXPLICIT: Final = frozenset({"reward", "rewards"})
_IMPLICIT: Final = frozenset({"policy", "reference"})


@dataclass(slots=True)
class Totals:
    """Sums over the shards that this process saw committed."""

    num_shards: int = 0
    num_tokens: int = 0
    """Prompt and response tokens of the pairs, the prompt counted once."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds that the workers of each stage spent on shards."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows dropped, by reason."""
    overlap_s: float = 0.0
    """Seconds in which a reward worker and a policy or reference worker were on shards at the same time."""
    _changes: list[tuple[float, int, int]] = field(default_factory=list)
    """When a worker of either kind began or ended a shard of this wave."""

    def add(self, work: ShardWork) -> None:
        """Count a shard; its table is the PartSummary as JSON (see `step.commit_to`)."""
        summary = json.loads(work.table.column("summary")[0].as_py())
        self.num_shards += 1
        self.num_tokens += sum(summary["num_tokens"].values())
        for reason, number in (item for reasons in summary["drops"].values() for item in reasons.items()):
            self.dropped[reason] = self.dropped.get(reason, 0) + number
        for timing in work.timings:
            self.busy_s[timing.stage] = self.busy_s.get(timing.stage, 0.0) + timing.ended_s - timing.started_s
            explicit, implicit = int(timing.stage.partition(".")[0] in _EXPLICIT), int(timing.stage in _IMPLICIT)
            if explicit or implicit:
                self._changes += [(timing.started_s, explicit, implicit), (timing.ended_s, -explicit, -implicit)]

    def figures(self) -> Figures:
        """The sums up to now, for people who look on."""
        busy_s, dropped = dict(self.busy_s), dict(self.dropped)
        return Figures(num_shards=self.num_shards, num_tokens=self.num_tokens, busy_s=busy_s, dropped=dropped)

    def end_wave(self) -> None:
        """Add up the overlap of the shards since the last wave, all of which have ended."""
        last_s, num_explicit, num_implicit = 0.0, 0, 0
        for at_s, explicit, implicit in sorted(self._changes):
            if num_explicit and num_implicit:
                self.overlap_s += at_s - last_s
            last_s, num_explicit, num_implicit = at_s, num_explicit + explicit, num_implicit + implicit
        self._changes.clear()
