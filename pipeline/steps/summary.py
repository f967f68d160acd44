"""What a score run did, in numbers: rows, tokens, and the seconds of each stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.data.manifest import Manifest
from pipeline.shown import shown, shown_path
from pipeline.steps.refusals import with_words
from pipeline.steps.work import Timing

_EXPLICIT: Final = frozenset({"reward"})
_IMPLICIT: Final = frozenset({"policy", "reference"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSummary:
    """What this process did for a scored dataset; it may have found a part of it complete."""

    num_shards_done_now: int
    num_tokens_now: int
    """Prompt and response tokens of the pairs scored now, the prompt counted once."""
    seconds: float
    template_words: str = ""
    """What the chat template says of rows that it refuses."""
    timings: Sequence[Timing] = ()

    @property
    def busy_s(self) -> dict[str, float]:
        """Seconds that the workers of each stage spent on shards, in the order in which the stages first ran."""
        busy: dict[str, float] = {}
        for timing in sorted(self.timings, key=lambda timing: timing.started_s):
            busy[timing.stage] = busy.get(timing.stage, 0.0) + timing.ended_s - timing.started_s
        return busy

    @property
    def overlap_s(self) -> float:
        """Seconds in which a reward worker and a policy or reference worker were on shards at the same time."""
        changes = []
        for timing in self.timings:
            explicit, implicit = int(timing.stage in _EXPLICIT), int(timing.stage in _IMPLICIT)
            changes += [(timing.started_s, explicit, implicit), (timing.ended_s, -explicit, -implicit)]
        total, last_s, num_explicit, num_implicit = 0.0, 0.0, 0, 0
        for at_s, explicit, implicit in sorted(changes):
            if num_explicit and num_implicit:
                total += at_s - last_s
            last_s, num_explicit, num_implicit = at_s, num_explicit + explicit, num_implicit + implicit
        return total


def render_score(summary: ScoreSummary, manifest: Manifest, url: str) -> str:
    """The summary of the scored dataset at `url` as a table for the terminal."""
    rows: list[tuple[str, str]] = [
        ("rows read", f"{manifest.num_rows:,}"),
        ("rows kept", f"{manifest.num_kept:,}"),
        ("rows dropped", f"{manifest.num_dropped:,}"),
        *(
            (f"  {shown(with_words(reason, summary.template_words))}", f"{count:,}")
            for reason, count in sorted(manifest.drops_by_reason.items())
        ),
        ("shards", f"{len(manifest.files):,} ({summary.num_shards_done_now or 'none'} now)"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    busy_s, overlap_s = summary.busy_s, summary.overlap_s
    if summary.num_tokens_now and set(busy_s) & (_EXPLICIT | _IMPLICIT):
        rate = summary.num_tokens_now / summary.seconds
        rows.append(("tokens", f"{summary.num_tokens_now:,} ({rate:,.0f}/s through every model)"))
    rows += [(f"  busy {stage}", f"{seconds:.1f} s") for stage, seconds in busy_s.items()]
    if overlap_s:
        rows.append(("  reward with policy/reference", f"{overlap_s:.1f} s at once"))
    rows.append(("scored dataset", shown_path(url)))
    widest = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(widest)}  {value}" for name, value in rows)
