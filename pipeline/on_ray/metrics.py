"""What a run tells Prometheus, through the metrics port of Ray's nodes. deploy/monitoring/ has rules and a dashboard.

Ray puts `ray_` before every name and `_total` behind the name of a counter. Labels hold no ids, paths or text. Ray
exports about every ten seconds, so the last shards of a run may be missing; the manifest has the exact counts.
"""

import json
import time
from collections.abc import Mapping
from typing import Any, Final

from ray.util.metrics import Counter, Gauge

from pipeline.steps.work import ShardWork

COUNTERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "alignpot_shards": ("Shards committed.", ()),
    "alignpot_rows": ("Rows committed, kept or dropped.", ("outcome",)),
    "alignpot_dropped_rows": ("Rows dropped, by stage and reason.", ("stage", "reason")),
    "alignpot_tokens": ("Tokens of the rows kept, by column; a prompt is counted once.", ("column",)),
    "alignpot_busy_seconds": ("Seconds that workers spent on shards, by stage.", ("stage",)),
    "alignpot_gpu_seconds": ("GPUs reserved by all pools, times seconds.", ()),
    "alignpot_worker_restarts": ("Workers that Ray started again after a death.", ("worker",)),
}
GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "alignpot_workers": ("Workers that a stage has.", ("stage",)),
}

_FLUSH_S: Final = 1.0
"""A counter of Ray takes some 15 microseconds each time: too much for every shard."""


def exported_names() -> set[str]:
    """The names under which Prometheus finds the metrics."""
    return {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


class RunMetrics:
    """Counts the shards that the driver of a run sees committed."""

    def __init__(self, workers: Mapping[str, int], num_gpus: float) -> None:
        """Take the workers of each stage, and the GPUs that all of them reserve."""
        self._num_gpus = num_gpus
        self._flushed_s = time.monotonic()
        self._pending: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._counters = {name: _counter(name) for name in COUNTERS}
        for name, (text, labels) in GAUGES.items():
            gauge = Gauge(name, description=text, tag_keys=labels)
            for stage, number in workers.items():
                gauge.set(number, tags={"stage": stage})

    def count(self, work: ShardWork) -> None:
        """Add a committed shard, whose table is the summary of its part."""
        self._add("alignpot_shards", 1)
        for timing in work.timings:
            self._add("alignpot_busy_seconds", timing.ended_s - timing.started_s, stage=timing.stage)
        if "summary" in work.table.column_names:
            self._count_rows(json.loads(work.table.column("summary")[0].as_py()))
        if time.monotonic() - self._flushed_s > _FLUSH_S:
            self.flush()

    def _count_rows(self, summary: Mapping[str, Any]) -> None:
        self._add("alignpot_rows", summary["num_kept"], outcome="kept")
        self._add("alignpot_rows", summary["num_dropped"], outcome="dropped")
        for column, number in summary["num_tokens"].items():
            self._add("alignpot_tokens", number, column=column)
        for stage, reasons in summary["drops"].items():
            for reason, number in reasons.items():
                self._add("alignpot_dropped_rows", number, stage=stage, reason=reason)

    def _add(self, name: str, number: float, **labels: str) -> None:
        key = name, tuple(labels.items())
        self._pending[key] = self._pending.get(key, 0) + number

    def flush(self) -> None:
        """Hand over to Ray what was counted since the last time."""
        now_s = time.monotonic()
        self._add("alignpot_gpu_seconds", self._num_gpus * (now_s - self._flushed_s))
        for (name, labels), number in self._pending.items():
            if number > 0:  # Ray refuses to add nothing
                self._counters[name].inc(number, tags=dict(labels))
        self._pending.clear()
        self._flushed_s = now_s


def count_restart(worker: str) -> None:
    """Count a worker that Ray has started again."""
    _counter("alignpot_worker_restarts").inc(1, tags={"worker": worker})


def _counter(name: str) -> Counter:
    text, labels = COUNTERS[name]
    return Counter(name, description=text, tag_keys=labels)
