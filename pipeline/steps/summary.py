"""What a score run did, in numbers: rows, tokens, and the seconds of each stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pipeline import schema
from pipeline.data.manifest import Manifest
from pipeline.shown import shown, shown_path
from pipeline.steps.refusals import with_words

_MODELS: Final = frozenset({"reward", "rewards", "policy", "reference"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSummary:
    """What this process did for a scored dataset; it may have found a part of it complete."""

    num_shards_done_now: int
    num_tokens_now: int
    """Prompt and response tokens of the pairs scored now, the prompt counted once."""
    seconds: float
    template_words: str = ""
    """What the chat template says of rows that it refuses."""
    busy_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the workers of each stage spent on shards."""
    overlap_s: float = 0.0
    """Seconds in which a reward worker and a policy or reference worker were on shards at the same time."""


def render_score(summary: ScoreSummary, manifest: Manifest, url: str) -> str:
    """The summary of the scored or rewarded dataset at `url` as a table for the terminal."""
    rows: list[tuple[str, str]] = [
        ("rows read", f"{manifest.num_rows:,}"),
        ("rows kept", f"{manifest.num_kept:,}"),
        ("rows dropped", f"{manifest.num_dropped:,}"),
        *(
            (f"  {shown(with_words(reason, summary.template_words))}", f"{count:,}")
            for reason, count in sorted(manifest.drops_by_reason.items())
        ),
        *([("rows skipped", f"{lazy['skipped']:,}")] if (lazy := manifest.extra.get("lazy")) else []),
        *(
            [("rows passed over", f"{passed_over:,} by score.proxy: a subset of this dataset is approximate")]
            if (passed_over := (lazy or {}).get(schema.PASSED_OVER))
            else []
        ),
        ("shards", f"{len(manifest.files):,} ({summary.num_shards_done_now or 'none'} now)"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    busy_s, overlap_s = summary.busy_s, summary.overlap_s
    if summary.num_tokens_now and _MODELS & {stage.partition(".")[0] for stage in busy_s}:
        rate = summary.num_tokens_now / summary.seconds
        rows.append(("tokens", f"{summary.num_tokens_now:,} ({rate:,.0f}/s through every model)"))
    rows += [(f"  busy {stage}", f"{seconds:.1f} s") for stage, seconds in busy_s.items()]
    if overlap_s:
        rows.append(("  reward with policy/reference", f"{overlap_s:.1f} s at once"))
    rows.append((f"{manifest.kind} dataset", shown_path(url)))
    widest = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(widest)}  {value}" for name, value in rows)
