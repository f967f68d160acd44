"""The prompts that self-play starts from, as a table of PROMPT_SCHEMA.

Every row of the source is a row of the table. First come the usable ones by id, then the others, dropped with stage and
reason. The id is that of the id column, or else the digest of the prompt. Rows without a prompt, and rows that repeat
one, have their place (file and row) as id.

The prompts of one run are held in memory: about 2 KiB each with the texts of usual datasets, so 1e5 of them take
some 200 MB. Dropped rows keep no text.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema as s
from pipeline.config import SEED_STRATEGY, Prompts
from pipeline.drops import Drop, Reason
from pipeline.errors import DataError
from pipeline.metrics.ids import hash_ids
from pipeline.shown import quoted, shown_path
from pipeline.sources.contamination import Contamination
from pipeline.sources.prompts import PromptRow, open_prompts
from pipeline.sources.rows import Turn, prompt_digest
from pipeline.sources.shards import SourceFile


@dataclass(frozen=True, kw_only=True)
class SeedPrompts:
    """The table, and what it was read from: data files with their digests, and the format that was found."""

    table: pa.Table
    files: tuple[SourceFile, ...]
    format: str

    @property
    def num_usable(self) -> int:
        """Prompts that are not dropped."""
        return int(self.table.num_rows) - sum(self.dropped.values())

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows were dropped for each reason, the commonest first; equal prompts and the limit included."""
        reasons = Counter(reason for reason in self.table.column(s.DROP_REASON).to_pylist() if reason is not None)
        return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def read_prompts(fs: Any, root: str, prompts: Prompts, benchmarks: Contamination | None = None) -> SeedPrompts:
    """Read all prompts: each different one once, without contaminated ones, at most `prompts.limit` of them.

    Of equal prompts the one of the smallest id is kept. The limit keeps those whose hash of seed and id is smallest, so
    that neither the order of rows nor that of files matters, and a higher limit adds to a lower one.

    Raises:
        ConfigError: `prompts.format` is unknown.
        SourceError: bad files, no rows, or a format that cannot be told.
        SchemaError: the format or the id lacks its column.
        DataError: two different prompts have the same id, or no row has a prompt to use.
        OSError: the storage failed.
    """
    source = open_prompts(fs, root, prompts)
    kept, dropped = _each_once(source.rows())
    if benchmarks is not None:
        hit = {id_ for id_, prompt in kept.items() if benchmarks.hits_prompt(prompt)}
        dropped += [_dropped(id_, Drop(Reason.CONTAMINATED, "filter")) for id_ in sorted(hit)]
        kept = {id_: prompt for id_, prompt in kept.items() if id_ not in hit}
    if prompts.limit is not None:
        first = set(by_hash([*kept], prompts.seed)[: prompts.limit])
        dropped += [_dropped(id_, Drop(Reason.BEYOND_LIMIT)) for id_ in sorted(kept) if id_ not in first]
        kept = {id_: prompt for id_, prompt in kept.items() if id_ in first}
    seed = {s.STRATEGY: SEED_STRATEGY, s.ROUND: 0, s.STATUS: s.KEPT}
    rows = [{s.ID: id_, s.PROMPT: kept[id_], **seed} for id_ in sorted(kept)]
    seeds = SeedPrompts(
        table=pa.Table.from_pylist([*rows, *dropped], schema=s.PROMPT_SCHEMA), files=source.files, format=source.format
    )
    if not rows:
        raise DataError(f"prompts.path {shown_path(root)}: no row has a prompt to use; reasons: {seeds.dropped}.")
    return seeds


def by_hash(ids: Sequence[str], seed: int) -> list[str]:
    """The ids in the order of their hash with the seed, ties by id: one that does not depend on theirs."""
    names = pa.array(sorted(ids), pa.string())
    order = np.argsort(hash_ids(names, seed), kind="stable")
    taken: list[str] = names.take(pa.array(order)).to_pylist()
    return taken


def _each_once(rows: Iterable[PromptRow]) -> tuple[dict[str, list[Turn]], list[dict[str, Any]]]:
    """Each different prompt by its id, and the rows that gave none or repeated one."""
    dropped: list[dict[str, Any]] = []
    of_digest: dict[str, tuple[str, str, list[Turn]]] = {}  # id, place, prompt
    digest_of_id: dict[str, str] = {}
    for row in rows:
        if isinstance(row.prompt, Drop):
            dropped.append(_dropped(row.place, row.prompt))
            continue
        digest = prompt_digest(row.prompt)
        row_id = row.id or digest
        if digest_of_id.setdefault(row_id, digest) != digest:
            raise DataError(
                f"two different prompts have the id {quoted(row_id)}. Name an id column with unique ids, or leave out "
                "prompts.id_column to use a hash of the prompt."
            )
        here = (row_id, row.place, row.prompt)
        before = of_digest.get(digest)
        of_digest[digest] = here if before is None else min(before, here, key=lambda found: found[:2])
        if before is not None:
            repeated = max(before, here, key=lambda found: found[:2])
            dropped.append(_dropped(repeated[1], Drop(Reason.DUPLICATE_PROMPT)))
    return {id_: prompt for id_, _, prompt in of_digest.values()}, dropped


def _dropped(id_: str, drop: Drop) -> dict[str, Any]:
    return {s.ID: id_, s.STRATEGY: SEED_STRATEGY, s.ROUND: 0, **drop.columns}
