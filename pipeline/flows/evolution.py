"""New prompts out of those of selected pairs: read them, ask the policy to rewrite them, keep what the filters allow.

subset/ -> tasks/ -> drafts/ -> prompts/
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import SelfPlayConfig, Storage
from pipeline.errors import SourceError
from pipeline.faults import storage_errors
from pipeline.flows.expansion import PROMPTS, Actors, Counts
from pipeline.flows.step import DatasetReader, Step, TableReader, content_of, open_step, run_step
from pipeline.generation.evolve import plan_evolution, selected_prompts
from pipeline.generation.filters import filter_prompts
from pipeline.generation.stages import evolve_stage
from pipeline.generation.strategies import template_fingerprint
from pipeline.sources.contamination import Contamination
from pipeline.storage.filesystem import open_filesystem
from pipeline.storage.manifest import Manifest
from pipeline.storage.parts import digest
from pipeline.storage.runs import fingerprint_digest
from pipeline.storage.subset import SubsetManifest, load_subset_manifest


def read_subset(url: str, storage: Storage, columns: Sequence[str]) -> pa.Table:
    """Columns of a complete subset, in its order, from its Parquet files.

    Raises:
        SourceError: there is none.
    """
    fs, root = open_filesystem(url, storage)
    paths = [file["path"] for file in _complete(url, storage).files if file["path"].startswith("parquet/")]
    tables = []
    for path in paths:
        with storage_errors(url), fs.open(f"{root}/{path}", "rb") as file:
            tables.append(pq.read_table(file, columns=list(columns)))
    return pa.concat_tables(tables)


def prompts_of(url: str, storage: Storage) -> pa.Table:
    """The prompts of a subset's pairs, each once, by id, as a table of PROMPT_SCHEMA."""
    provenance = [field.name for field in schema.PROVENANCE_FIELDS]
    return selected_prompts(read_subset(url, storage, [schema.PROMPT_ID, schema.PROMPT, *provenance]))


def write_prompts(config: SelfPlayConfig, table: pa.Table, url: str, fingerprint: Mapping[str, Any]) -> Manifest:
    """A table of PROMPT_SCHEMA as a dataset; another table, or the same with another fingerprint, is refused there."""
    step = Step(
        kind=PROMPTS,
        url=url,
        reader=TableReader(table=table),
        num_rows=table.num_rows,
        shard_rows=4096,
        stages=(),
        schema=schema.PROMPT_SCHEMA,
        fingerprint={**fingerprint, "rows": _content(table)},
        config=config.model_dump(mode="json"),
    )
    return run_step(step, config.run.model_copy(update={"engine": "plain"}), config.storage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What no new prompt may repeat: prompts that were given or made before, and benchmarks."""

    prompts: tuple[pa.Table, ...]
    benchmarks: Contamination | None


def evolve_prompts(actors: Actors, known: Known, number: int, subset: str, url: str, counts: Counts) -> Manifest:
    """New prompts out of those of a subset: the dataset `url`/prompts, dropped ones with their reasons.

    The policy writes `url`/drafts; the filters judge all drafts together.
    """
    config, started = actors.config, time.monotonic()
    assert config.evolve is not None  # noqa: S101
    parents = prompts_of(subset, config.storage)
    settings = config.evolve.model_dump(mode="json")
    asked = write_prompts(
        config,
        plan_evolution(parents, config.evolve, round_=number),
        f"{url}/tasks",
        {"evolve": settings, "subset": subset_digest(subset, config.storage)},
    )
    step = Step(
        kind=PROMPTS,
        url=f"{url}/drafts",
        reader=DatasetReader(dataset=open_step(f"{url}/tasks", PROMPTS, config.storage)),
        num_rows=asked.num_scored,
        shard_rows=config.generate.shard_prompts,
        stages=[evolve_stage(config, actors.policy)],
        schema=schema.DRAFT_SCHEMA,
        fingerprint={
            "input": content_of(asked),
            "policy": actors.fingerprints["policy"],
            "evolve": settings,
            "templates": template_fingerprint(config.evolve.strategies),
            "generate": config.generate.fingerprint(),
        },
        config=config.model_dump(mode="json"),
    )
    drafts = run_step(step, config.run, config.storage)
    table = every_row(f"{url}/drafts", config.storage)
    kept = filter_prompts(table, parents, known.prompts, config.evolve, known.benchmarks)
    prompts = kept.select(schema.PROMPT_SCHEMA.names)
    written = write_prompts(config, prompts, f"{url}/{PROMPTS}", {"input": content_of(drafts), "evolve": settings})
    counts.add_drops(written)
    counts.tokens_generated += pc.sum(table[schema.NUM_TOKENS_DRAFT], min_count=0).as_py()
    counts.seconds["evolve"] = time.monotonic() - started
    return written


def _content(table: pa.Table) -> str:
    rows = table.combine_chunks().cast(schema.PROMPT_SCHEMA).to_pylist()
    return digest(json.dumps(rows, ensure_ascii=False).encode())


def subset_digest(url: str, storage: Storage) -> str:
    """What identifies the rows of a subset, in their order."""
    return fingerprint_digest({"files": [dict(file) for file in _complete(url, storage).files]})


def _complete(url: str, storage: Storage) -> SubsetManifest:
    manifest = load_subset_manifest(*open_filesystem(url, storage))
    if manifest is None:
        raise SourceError(f"{url} holds no complete subset. Run the same command again.")
    return manifest


def every_row(url: str, storage: Storage) -> pa.Table:
    """All rows of a dataset of prompts, dropped ones too, in memory."""
    dataset = open_step(url, PROMPTS, storage)
    return pa.concat_tables([dataset.schema.empty_table(), *dataset.tables(scored_only=False)])
