"""Score a preference dataset: the table of contents of the main job.

    open source -> check models -> plan (run.json) -> pending shards -> stages -> parts -> _SUCCESS.json

Everything that can be wrong is found before a model is loaded. The same config, run again, continues where it stopped.
If it had finished, it does nothing.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import ColumnsModel, ColumnsReward, Config, TorchModel, resolved
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SCORED, Manifest, find_manifest
from pipeline.data.place import Place
from pipeline.data.run import RUN_FILE, Run
from pipeline.errors import ConfigError, TooManyDroppedError
from pipeline.faults import storage_errors
from pipeline.metrics.columns import single_array
from pipeline.metrics.ids import id_hashes
from pipeline.selection.duplicates import find_repeats
from pipeline.sources.reader import open_source
from pipeline.sources.rows import content_digest
from pipeline.steps.refusals import template_words, with_words
from pipeline.steps.score_stages import score_stages
from pipeline.steps.shards import AnyShard, OwnRows, SourceRows
from pipeline.steps.step import Step, begin_step, complete_step, pending_shards
from pipeline.steps.summary import ScoreSummary
from pipeline.steps.work import read_shard


def prepare_score(config: Config, pairs: Dataset | None = None) -> tuple[Config, Step, Run]:
    """Check source, storage and models, and write or find the plan.

    pairs: a dataset of ours to score, in place of the config's source.

    Returns:
        The arguments of `score`: the config with its models pinned, the step, and its claimed place.

    Raises an AlignpotError if anything is wrong, before any weights are read.
    """
    config, step = scoring_step(config, pairs)
    run = begin_step(step, config.storage)
    step.rows.shards(run.plan.shards, run.place / RUN_FILE)
    return config, step, run


def scoring_step(config: Config, pairs: Dataset | None = None) -> tuple[Config, Step]:
    """The first two values of `prepare_score`, with the same checks; claims nothing."""
    source = _from_source(config) if pairs is None else _from_dataset(config, pairs)
    models = _model_fingerprints(config)
    place = Place.open(config.scored, config.storage)
    if find_manifest(place, SCORED) is None:
        check_writable(place)
    given, torch_models = resolved(config), config.torch_models()
    if pairs is None:
        given["source"] |= source.pop("part")
    pinned_models = {role: pinned(model, models[role]) for role, model in torch_models.items()}
    config = config.model_copy(update=pinned_models)
    source["fingerprint"] = {"source": source["fingerprint"], **models}
    return config, Step(kind=SCORED, url=config.scored, stages=score_stages(config), config=given, **source)


def score(config: Config, step: Step, run: Run) -> tuple[ScoreSummary, Manifest]:
    """Score the shards that have no part yet and publish the manifest. Arguments as `prepare_score` gives them.

    Raises the AlignpotError that stopped the run; parts committed so far stay.
    """
    started = time.monotonic()
    pending = pending_shards(step, run)
    if pending and any(model.fp8 for model in config.torch_models().values()):
        _check_fp8(config, step, pending)
    manifest, done = complete_step(step, run, pending, config.run)
    parts = [json.loads(work.table.column("summary")[0].as_py()) for work in done]
    summary = ScoreSummary(
        num_shards_done_now=len(pending),
        num_tokens_now=sum(sum(part["num_tokens"].values()) for part in parts),
        seconds=time.monotonic() - started,
        template_words=template_words(config, manifest),
        timings=[timing for work in done for timing in work.timings],
    )
    return summary, manifest


def _shard_rows(config: Config) -> int:
    """Rows in a shard: few if models may fail in the middle of one, many if files are only read and written."""
    return config.run.shard_rows or (256 if config.torch_models() else 8192)


def _check_fp8(config: Config, step: Step, pending: Sequence[AnyShard]) -> None:
    """See check_ranks. With Ray it runs on a node that has a GPU."""
    from pipeline.steps.fp8_ranks import NUM_RANKED, check_ranks

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
    from pipeline.on_ray.session import ray_session
    from pipeline.on_ray.tasks import call_on_cluster

    models = list(config.torch_models().values())
    with ray_session(config.run, models):
        call_on_cluster(partial(check_ranks, config), rows, **reserved_by_one_call(models))


def check_dropped(config: Config, manifest: Manifest) -> None:
    """Raise a TooManyDroppedError if the share of dropped rows is over the limit."""
    if manifest.fraction_dropped > config.run.max_dropped:
        words = template_words(config, manifest)
        counts = manifest.drops_by_reason.items()
        reasons = ", ".join(f"{with_words(reason, words)}: {count}" for reason, count in counts)
        raise TooManyDroppedError(
            f"{manifest.num_dropped} of {manifest.num_rows} rows were dropped ({reasons}); run.max_dropped allows a "
            f"share of {config.run.max_dropped}. Mend the source, or raise run.max_dropped and run again: nothing is "
            "rescored."
        )


def pinned(model: TorchModel, fingerprint: Mapping[str, Any]) -> TorchModel:
    """The model as workers read it: a hub id at the commit that was fingerprinted, a local directory as a full path.

    So a branch that moves during the run has no effect, and neither has a worker's working directory.
    """

    def full_path(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).is_dir() else name

    return model.model_copy(
        update={
            "model": full_path(model.model),
            "adapter": model.adapter and full_path(model.adapter),
            "revision": fingerprint.get("revision", model.revision),
            "adapter_revision": fingerprint.get("adapter", {}).get("revision", model.adapter_revision),
        }
    )


def _check_ids(run: Run, manifest: Manifest) -> None:
    """Refuse a dataset whose ids stand for several contents before it is published, however often it is asked for."""
    dataset = Dataset(run.place, manifest)
    hashes = [id_hashes(single_array(table, schema.ID)) for table in dataset.tables([schema.ID])]
    find_repeats(dataset, np.concatenate([np.zeros(0, dtype=np.uint64), *hashes]))


def _from_source(config: Config) -> dict[str, Any]:
    """Fields of the step that follow from the config's source. Its ids may repeat only if they come from a column."""
    source = config.source
    if source is None:
        raise ConfigError("score needs a source section with the path of the preference data; the config has none.")
    place = Place.of_source(source.path, config.storage)
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
    fields = [*(schema.message_fields_of(reader.schema.field(schema.PROMPT).type) or ())]
    fields += [name for name in (schema.TEMPLATE_KWARGS,) if name in reader.schema.names]
    if fields:
        fingerprint["message_fields"] = fields
    part = {"split": reader.split, "config": reader.config}
    if place.commit is not None:
        fingerprint["commit"] = place.commit
        part["path"] = str(place)
    return {
        "part": part,
        "rows": SourceRows(reader=reader, files=files, shard_rows=_shard_rows(config)),
        "schema": reader.schema,
        "fingerprint": fingerprint,
        "source_format": reader.format,
        "check": _check_ids if reader.id_column is not None else None,
    }


def _from_dataset(config: Config, pairs: Dataset) -> dict[str, Any]:
    """Fields of the step that follow from pairs of ours.

    Their scores are kept where the config takes scores from columns. Columns that are not ours are kept too.
    """
    fields = schema.message_fields_of(pairs.schema.field(schema.PROMPT).type) or ()
    pair = schema.pair_schema(fields, template_kwargs=schema.TEMPLATE_KWARGS in pairs.schema.names)
    taken: set[str] = {*pair.names, schema.STATUS}
    for section, names in (
        (config.reward, schema.REWARDS),
        (config.policy, schema.POLICY_SCORES),
        (config.reference, schema.REFERENCE_SCORES),
    ):
        if isinstance(section, (ColumnsModel, ColumnsReward)):
            taken.update(names)
    own = {field.name for field in (*schema.scored_schema(pair=pair), *schema.SUBSET_FIELDS)}
    extra = [field for field in pairs.schema if field.name not in own]
    wanted = schema.scored_schema(extra, pair)
    prepare = partial(_as_scored, wanted=wanted, blank=frozenset(own - taken))
    return {
        "rows": OwnRows(rows=pairs, shard_rows=_shard_rows(config), prepare=prepare),
        "schema": wanted,
        "fingerprint": {"dataset": pairs.content},
        "check": _check_ids,
    }


def _as_scored(table: pa.Table, wanted: pa.Schema, blank: frozenset[str]) -> pa.Table:
    """Pairs of ours as rows of `wanted`: null in the columns `blank`, and in columns that they lack."""
    table = table.drop_columns([name for name in table.column_names if name in blank])
    if schema.CONTENT_DIGEST not in table.column_names:
        names = (schema.PROMPT, schema.CHOSEN, schema.REJECTED, schema.TOOLS, schema.TEMPLATE_KWARGS)
        held = [name for name in names if name in table.column_names]
        digests = [content_digest(*map(row.get, names)) for row in table.select(held).to_pylist()]
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
    of_reward = {name: value for name, value in tokens.items() if name in ("date", "template")}
    found["tokens"] = tokens if {"policy", "reference"} & set(models) else of_reward
    return found
