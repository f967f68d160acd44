"""Score a preference dataset: the table of contents of the main job.

    open source -> check models -> plan (run.json) -> pending shards -> stages -> parts -> _SUCCESS.json

Everything that can be wrong is found before a model is loaded. Run again, the same config continues where it stopped,
and does nothing when it had finished.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import ColumnsModel, ColumnsReward, Config, TorchModel, resolved
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.duplicates import find_repeats
from pipeline.data.manifest import SCORED, Manifest, find_manifest
from pipeline.data.place import Place
from pipeline.data.run import RUN_FILE, Plan, Run
from pipeline.errors import ConfigError, TooManyDroppedError
from pipeline.faults import storage_errors
from pipeline.metrics.columns import single_array
from pipeline.metrics.ids import id_hashes
from pipeline.sources.reader import PairReader, open_source
from pipeline.sources.rows import content_digest
from pipeline.sources.shards import Shard, SourceFile, plan_shards, stored_shards
from pipeline.steps.fp8_ranks import NUM_RANKED, check_ranks, roles_in_fp8
from pipeline.steps.plan import score_stages
from pipeline.steps.step import OwnRows, Rows, Step, begin_step, finish_step, pending_shards, summary_of, work_on
from pipeline.steps.summary import ScoreSummary
from pipeline.steps.timeline import Timeline
from pipeline.steps.work import AnyShard, read_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRun:
    """A checked and planned run: nothing is left that the config could be wrong about."""

    config: Config
    step: Step
    run: Run

    @property
    def plan(self) -> Plan:
        """The plan that stands."""
        return self.run.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """The rows of the source's files, in shards of `shard_rows`."""

    reader: PairReader
    files: Sequence[SourceFile]
    shard_rows: int

    def plan(self) -> tuple[Mapping[str, Any], ...]:
        """See Rows."""
        return tuple(shard.to_dict() for shard in plan_shards(self.files, self.shard_rows))

    def shards(self, stored: Sequence[Mapping[str, Any]], where: Place) -> Sequence[Shard]:
        """See Rows."""
        return stored_shards(stored, self.files, str(where))


def prepare_score(config: Config, pairs: Dataset | None = None) -> ScoreRun:
    """Check source, storage and models, and write or find the plan.

    pairs: a dataset of ours to score, in place of the config's source.

    Raises:
        AlignpotError: what is wrong, before any weights are read.
    """
    given = _of_source(config) if pairs is None else _of_dataset(config, pairs)
    models = _model_fingerprints(config)
    place = Place.open(config.scored, config.storage)
    if find_manifest(place, SCORED) is None:
        check_writable(place)
    pinned_config = _pinned(config, models)
    step = Step(
        kind=SCORED,
        url=config.scored,
        rows=given.rows,
        stages=score_stages(pinned_config),
        schema=given.schema,
        fingerprint={"source": given.fingerprint, **models},
        config=resolved(config),
        source_format=given.format,
        check=_check_ids if given.has_ids else None,
    )
    run = begin_step(step, config.storage)
    step.rows.shards(run.plan.shards, place / RUN_FILE)
    return ScoreRun(config=pinned_config, step=step, run=run)


def score(scoring: ScoreRun) -> tuple[ScoreSummary, Manifest]:
    """Score the shards that have no part yet and publish the manifest.

    Raises:
        AlignpotError: what stopped the run; parts committed so far stay.
    """
    started = time.monotonic()
    config, step, run = scoring.config, scoring.step, scoring.run
    pending = pending_shards(step, run)
    if pending and roles_in_fp8(config):
        _check_fp8(config, step, pending)
    timeline, num_tokens = Timeline(), 0
    for work in work_on(step, run, pending, config.run):
        timeline.add(work.timings)
        num_tokens += sum(summary_of(work)["num_tokens"].values())
    manifest = finish_step(step, run, time.monotonic() - started)
    summary = ScoreSummary(
        scored_url=config.scored,
        num_rows=manifest.num_rows,
        num_kept=manifest.num_kept,
        drops=manifest.drops_by_reason,
        num_shards=len(run.plan.shards),
        num_shards_done_now=len(pending),
        num_tokens_now=num_tokens,
        seconds=time.monotonic() - started,
        busy_s=timeline.busy_s(),
        overlap_s=timeline.overlap_s(),
    )
    return summary, manifest


def _shard_rows(config: Config) -> int:
    """Rows in a shard: few where models may fail in the middle of one, many where only files are read and written."""
    return config.run.shard_rows or (256 if config.torch_models() else 8192)


def _check_fp8(config: Config, step: Step, pending: Sequence[AnyShard]) -> None:
    """See check_ranks; on Ray, where one of the cluster's GPUs is."""
    tables: list[pa.Table] = []
    for shard in pending:
        tables.append(read_shard(step.rows.reader, shard).table)
        if sum(table.num_rows for table in tables) >= NUM_RANKED:
            break
    rows = pa.concat_tables(tables).slice(0, NUM_RANKED)
    if config.run.engine == "plain":
        check_ranks(config, rows)
        return
    from pipeline.on_ray.placement import reserved_by_one_call
    from pipeline.on_ray.remote import call_on_cluster
    from pipeline.on_ray.session import ray_session

    models = list(config.torch_models().values())
    with ray_session(config.run, models):
        call_on_cluster(partial(check_ranks, config), rows, **reserved_by_one_call(models))


def check_dropped(config: Config, manifest: Manifest) -> None:
    """Raise a TooManyDroppedError if the share of dropped rows is over the limit."""
    if manifest.fraction_dropped > config.run.max_dropped:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in manifest.drops_by_reason.items())
        raise TooManyDroppedError(
            f"{manifest.num_dropped} of {manifest.num_rows} rows were dropped ({reasons}); run.max_dropped allows a "
            f"share of {config.run.max_dropped}. Mend the source, or raise run.max_dropped and run again: nothing is "
            "rescored."
        )


def _pinned(config: Config, fingerprints: Mapping[str, Any]) -> Config:
    return config.model_copy(
        update={role: pinned(model, fingerprints[role]) for role, model in config.torch_models().items()}
    )


def pinned(model: TorchModel, fingerprint: Mapping[str, Any]) -> TorchModel:
    """The model as workers read it: a hub id at the commit that was fingerprinted, a local directory as a full path.

    So a branch that moves in mid-run mixes nothing, and a worker's working directory does not matter.
    """
    return model.model_copy(
        update={
            "model": _full_path(model.model),
            "adapter": model.adapter and _full_path(model.adapter),
            "revision": fingerprint.get("revision", model.revision),
            "adapter_revision": fingerprint.get("adapter", {}).get("revision", model.adapter_revision),
        }
    )


def _check_ids(run: Run, manifest: Manifest) -> None:
    """Refuse a dataset whose ids stand for several contents before it is published, however often it is asked for."""
    dataset = Dataset(run.place, manifest)
    hashes = [id_hashes(single_array(table, schema.ID)) for table in dataset.tables([schema.ID])]
    find_repeats(dataset, np.concatenate([np.zeros(0, dtype=np.uint64), *hashes]))


def _full_path(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """The pairs to score, and what identifies them.

    has_ids: ids come from a column and may repeat with other content; else the content names the row.
    """

    rows: Rows
    schema: pa.Schema
    fingerprint: Mapping[str, Any]
    format: str
    has_ids: bool


def _of_source(config: Config) -> _Given:
    source = config.source
    if source is None:
        raise ConfigError("score needs a source section with the path of the preference data; the config has none.")
    place = Place.open(source.path, config.storage)
    place.check_readable()
    with storage_errors(source.path):
        reader, files = open_source(
            place.fs,
            place.root,
            source,
            rewards=isinstance(config.reward, ColumnsReward),
            policy_logps=isinstance(config.policy, ColumnsModel),
            reference_logps=isinstance(config.reference, ColumnsModel),
        )
    fingerprint = source.fingerprint() | {
        "format": reader.format,
        "passthrough": [field.name for field in reader.passthrough],
        "files": {file.path: file.digest for file in files},
    }
    return _Given(
        rows=SourceRows(reader=reader, files=files, shard_rows=_shard_rows(config)),
        schema=reader.schema,
        fingerprint=fingerprint,
        format=reader.format,
        has_ids=reader.id_column is not None,
    )


def _of_dataset(config: Config, pairs: Dataset) -> _Given:
    """Pairs of ours: their own scores are kept where the config takes scores from columns, other columns go along."""
    taken: set[str] = {*schema.PAIR_SCHEMA.names, schema.STATUS}
    for section, names in (
        (config.reward, schema.REWARDS),
        (config.policy, schema.POLICY_SCORES),
        (config.reference, schema.REFERENCE_SCORES),
    ):
        if isinstance(section, (ColumnsModel, ColumnsReward)):
            taken.update(names)
    own = {field.name for field in (*schema.scored_schema(), *schema.SUBSET_FIELDS)}
    extra = [field for field in pairs.schema if field.name not in own]
    wanted = schema.scored_schema(extra)
    blank = frozenset(own - taken)
    return _Given(
        rows=OwnRows(
            rows=pairs, shard_rows=_shard_rows(config), prepare=partial(_as_scored, wanted=wanted, blank=blank)
        ),
        schema=wanted,
        fingerprint={"dataset": pairs.content},
        format="alignpot",
        has_ids=True,
    )


def _as_scored(table: pa.Table, wanted: pa.Schema, blank: frozenset[str]) -> pa.Table:
    """Pairs of ours as rows of `wanted`, null in the columns `blank` and in those that they lack."""
    table = table.drop_columns([name for name in table.column_names if name in blank])
    if schema.CONTENT_DIGEST not in table.column_names:
        turns = [table[name].to_pylist() for name in (schema.PROMPT, schema.CHOSEN, schema.REJECTED)]
        tools = table[schema.TOOLS].to_pylist() if schema.TOOLS in table.column_names else [None] * table.num_rows
        digests = [content_digest(*pair) for pair in zip(*turns, tools, strict=True)]
        table = table.append_column(schema.CONTENT_DIGEST, pa.array(digests, pa.string()))
    if schema.STATUS not in table.column_names:
        table = table.append_column(schema.STATUS, pa.array([schema.KEPT] * table.num_rows, pa.string()))
    has = set(table.column_names)
    columns = [table[field.name] if field.name in has else pa.nulls(table.num_rows, field.type) for field in wanted]
    return pa.Table.from_arrays(columns, schema=wanted)


def _model_fingerprints(config: Config) -> dict[str, Any]:
    """What identifies every number a model contributes; checks that the models fit each other."""
    models = config.torch_models()
    found: dict[str, Any] = {
        role: section.fingerprint()
        for role, section in (("policy", config.policy), ("reference", config.reference), ("reward", config.reward))
        if isinstance(section, (ColumnsModel, ColumnsReward))
    }
    if not models:
        return found
    from pipeline.models.fingerprints import model_fingerprint
    from pipeline.models.loading import check_models

    check_models(models, config.tokens)
    found |= {role: model_fingerprint(model) for role, model in models.items()}
    tokens = config.tokens.fingerprint()
    # A reward model has its own template and length.
    found["tokens"] = tokens if {"policy", "reference"} & set(models) else {"date": tokens["date"]}
    return found
