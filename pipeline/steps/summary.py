"""The table that scoring ends with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.shown import shown, shown_path


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSummary:
    """What a score run did. Counts are of the whole scored dataset; seconds and tokens of this run's share."""

    scored_url: str
    num_rows: int
    num_kept: int
    drops: Mapping[str, int]
    """Dropped rows by "stage: reason"."""
    num_shards: int
    num_shards_done_now: int
    num_tokens_now: int
    """Prompt and response tokens of the pairs scored now, the prompt counted once."""
    seconds: float
    busy_s: Mapping[str, float] = field(default_factory=dict)
    overlap_s: float = 0.0

    @property
    def num_dropped(self) -> int:
        """Rows dropped for any reason."""
        return sum(self.drops.values())


def render_score(summary: ScoreSummary) -> str:
    """The summary as a table for the terminal."""
    rows: list[tuple[str, str]] = [
        ("rows read", f"{summary.num_rows:,}"),
        ("rows kept", f"{summary.num_kept:,}"),
        ("rows dropped", f"{summary.num_dropped:,}"),
        *((f"  {shown(reason)}", f"{count:,}") for reason, count in sorted(summary.drops.items())),
        ("shards", f"{summary.num_shards:,} ({summary.num_shards_done_now or 'none'} now)"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    if summary.num_tokens_now and set(summary.busy_s) & {"reward", "policy", "reference"}:
        rate = summary.num_tokens_now / summary.seconds
        rows.append(("tokens", f"{summary.num_tokens_now:,} ({rate:,.0f}/s through every model)"))
    rows += [(f"  busy {stage}", f"{seconds:.1f} s") for stage, seconds in summary.busy_s.items()]
    if summary.overlap_s:
        rows.append(("  reward with policy/reference", f"{summary.overlap_s:.1f} s at once"))
    rows.append(("scored dataset", shown_path(summary.scored_url)))
    widest = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(widest)}  {value}" for name, value in rows)
