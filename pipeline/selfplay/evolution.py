"""New prompts out of those of selected pairs: read them, ask the policy to rewrite them, keep what the filters allow.

subset/ -> tasks/ -> drafts/ -> prompts/
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import SelfPlayConfig, Storage
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.sealed import digest
from pipeline.selfplay.contamination import Contamination
from pipeline.selfplay.evolve import plan_evolution, selected_prompts
from pipeline.selfplay.expansion import PROMPTS, Counts, Models
from pipeline.selfplay.filters import filter_prompts
from pipeline.selfplay.plan import evolve_stage
from pipeline.selfplay.strategies import template_fingerprint
from pipeline.steps.step import OwnRows, Step, run_step


def open_subset(url: str, storage: Storage) -> Dataset:
    """The complete subset at `url`.

    Raises:
        SourceError: there is none.
    """
    return Dataset.open(Place.open(url, storage), SUBSET)


def prompts_of(url: str, storage: Storage) -> pa.Table:
    """The prompts of a subset's pairs, each once, by id, as a table of PROMPT_SCHEMA."""
    provenance = [field.name for field in schema.PROVENANCE_FIELDS]
    return selected_prompts(open_subset(url, storage).table([schema.PROMPT_ID, schema.PROMPT, *provenance]))


def write_prompts(config: SelfPlayConfig, table: pa.Table, url: str, fingerprint: Mapping[str, Any]) -> Dataset:
    """A table of PROMPT_SCHEMA as a dataset; another table, or the same with another fingerprint, is refused there."""
    step = Step(
        kind=PROMPTS,
        url=url,
        rows=OwnRows(rows=table, shard_rows=4096),
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


def evolve_prompts(models: Models, known: Known, number: int, subset: str, url: str, counts: Counts) -> Dataset:
    """New prompts out of those of a subset: the dataset `url`/prompts, dropped ones with their reasons.

    The policy writes `url`/drafts; the filters judge all drafts together.
    """
    config, started = models.config, time.monotonic()
    assert config.evolve is not None  # noqa: S101
    parents = prompts_of(subset, config.storage)
    settings = config.evolve.model_dump(mode="json")
    asked = write_prompts(
        config,
        plan_evolution(parents, config.evolve, round_=number),
        f"{url}/tasks",
        {"evolve": settings, "subset": open_subset(subset, config.storage).content},
    )
    step = Step(
        kind=PROMPTS,
        url=f"{url}/drafts",
        rows=OwnRows(rows=asked, shard_rows=config.generate.shard_prompts),
        stages=[evolve_stage(config, models.policy)],
        schema=schema.DRAFT_SCHEMA,
        fingerprint={
            "input": asked.content,
            "policy": models.fingerprints["policy"],
            "evolve": settings,
            "templates": template_fingerprint(config.evolve.strategies),
            "generate": config.generate.fingerprint(),
        },
        config=config.model_dump(mode="json"),
    )
    drafts = run_step(step, config.run, config.storage)
    table = drafts.table(kept_only=False)
    kept = filter_prompts(table, parents, known.prompts, config.evolve, known.benchmarks)
    prompts = kept.select(schema.PROMPT_SCHEMA.names)
    written = write_prompts(config, prompts, f"{url}/{PROMPTS}", {"input": drafts.content, "evolve": settings})
    counts.add_drops(written.manifest)
    counts.tokens_generated += pc.sum(table[schema.NUM_TOKENS_DRAFT], min_count=0).as_py()
    counts.seconds["evolve"] = time.monotonic() - started
    return written


def _content(table: pa.Table) -> str:
    rows = table.combine_chunks().cast(schema.PROMPT_SCHEMA).to_pylist()
    return digest(json.dumps(rows, ensure_ascii=False).encode())
