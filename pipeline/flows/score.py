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

import fsspec
import pyarrow as pa

from pipeline import __version__
from pipeline.config import ClassifierReward, ColumnsModel, ColumnsReward, Config, TorchModel, resolved
from pipeline.errors import ConfigError, TooManyDroppedError
from pipeline.faults import storage_errors
from pipeline.flows.step import MINOR_VERSION, Place, summary_of, work_on
from pipeline.flows.summary import ScoreSummary
from pipeline.flows.timeline import Timeline
from pipeline.sources.files import SourceFile
from pipeline.sources.reader import PairReader, open_source
from pipeline.sources.rows import BEST_WORST
from pipeline.sources.shards import Shard, plan_shards, stored_shards
from pipeline.stages.fp8_ranks import NUM_RANKED, check_ranks, roles_in_fp8
from pipeline.stages.plan import score_stages
from pipeline.stages.work import read_shard
from pipeline.storage.duplicates import check_ids
from pipeline.storage.filesystem import check_readable, check_writable, display, open_filesystem
from pipeline.storage.manifest import Manifest, finish_run, is_complete
from pipeline.storage.parts import committed_parts
from pipeline.storage.runs import RUN_FILE, RunPlan, begin_run
from pipeline.storage.scored import ScoredDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRun:
    """A checked and planned run: nothing is left that the config could be wrong about."""

    config: Config
    plan: RunPlan
    reader: PairReader
    shards: Sequence[Shard]
    fs: fsspec.AbstractFileSystem
    root: str


def prepare_score(config: Config) -> ScoreRun:
    """Check source, storage and models, and write or find the plan.

    Raises:
        AlignpotError: what is wrong, before any weights are read.
    """
    reader, files = _open(config)
    models = _model_fingerprints(config)
    fs, root = open_filesystem(config.scored, config.storage)
    if not is_complete(fs, root):
        check_writable(fs, root)
    wanted = RunPlan(
        version=__version__,
        fingerprint={"alignpot": MINOR_VERSION, "source": _source_fingerprint(reader, files), **models},
        config=resolved(config),
        shards=tuple(shard.to_dict() for shard in plan_shards(files, _shard_rows(config))),
        schema=reader.schema,
        source_format=reader.format,
    )
    plan = begin_run(fs, root, wanted)
    shards = stored_shards(plan.shards, files, display(fs, f"{root}/{RUN_FILE}"))
    return ScoreRun(config=_pinned(config, models), plan=plan, reader=reader, shards=shards, fs=fs, root=root)


def score(run: ScoreRun) -> tuple[ScoreSummary, Manifest]:
    """Score the shards that have no part yet and publish the manifest.

    Raises:
        AlignpotError: what stopped the run; parts committed so far stay.
    """
    started = time.monotonic()
    done = committed_parts(run.fs, run.root, run.plan)
    pending = [shard for shard in run.shards if shard.index not in done]
    if pending and roles_in_fp8(run.config):
        _check_fp8(run, pending)
    timeline, num_tokens = Timeline(), 0
    place = Place(fs=run.fs, root=run.root, plan=run.plan)
    for work in work_on(place, run.reader, pending, score_stages(run.config), run.config.run):
        timeline.add(work.timings)
        num_tokens += sum(summary_of(work)["num_tokens"].values())
    manifest = finish_run(run.fs, run.root, run.plan, {"seconds": time.monotonic() - started}, partial(_check_ids, run))
    summary = ScoreSummary(
        scored_url=run.config.scored,
        num_rows=manifest.num_rows,
        num_scored=manifest.num_scored,
        drops=drops_by_reason(manifest),
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


def _check_fp8(run: ScoreRun, pending: Sequence[Shard]) -> None:
    """See check_ranks; on Ray, where one of the cluster's GPUs is."""
    rows = _first_rows(run, pending)
    if run.config.run.engine == "plain":
        check_ranks(run.config, rows)
        return
    from pipeline.flows.placement import reserved_by_one_call
    from pipeline.flows.remote import call_on_cluster
    from pipeline.flows.session import ray_session

    models = list(run.config.torch_models().values())
    with ray_session(run.config.run, models):
        call_on_cluster(partial(check_ranks, run.config), rows, **reserved_by_one_call(models))


def _first_rows(run: ScoreRun, pending: Sequence[Shard]) -> pa.Table:
    tables: list[pa.Table] = []
    for shard in pending:
        tables.append(read_shard(run.reader, shard).table)
        if sum(table.num_rows for table in tables) >= NUM_RANKED:
            break
    return pa.concat_tables(tables).slice(0, NUM_RANKED)


def check_dropped(config: Config, manifest: Manifest) -> None:
    """Raise a TooManyDroppedError if the share of dropped rows is over the limit."""
    if manifest.fraction_dropped > config.run.max_dropped:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in drops_by_reason(manifest).items())
        raise TooManyDroppedError(
            f"{manifest.num_dropped} of {manifest.num_rows} rows were dropped ({reasons}); run.max_dropped allows a "
            f"share of {config.run.max_dropped}. Mend the source, or raise run.max_dropped and run again: nothing is "
            "rescored."
        )


def drops_by_reason(manifest: Manifest) -> dict[str, int]:
    """Dropped rows by "stage: reason"."""
    return {
        f"{stage}: {reason}": count for stage, reasons in manifest.drops.items() for reason, count in reasons.items()
    }


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


def _check_ids(run: ScoreRun, manifest: Manifest) -> None:
    """Refuse a dataset whose ids stand for several contents before it is published, however often it is asked for."""
    if run.plan.fingerprint["source"]["id_column"] is not None:
        check_ids(ScoredDataset(run.fs, run.root, manifest))


def _full_path(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _open(config: Config) -> tuple[PairReader, list[SourceFile]]:
    """The source's reader and its files."""
    source = config.source
    if source is None:
        raise ConfigError("score needs a source section with the path of the preference data; the config has none.")
    fs, root = open_filesystem(source.path, config.storage)
    check_readable(fs, root)
    with storage_errors(source.path):
        return open_source(
            fs,
            root,
            source,
            rewards=isinstance(config.reward, ColumnsReward),
            policy_logps=isinstance(config.policy, ColumnsModel),
            reference_logps=isinstance(config.reference, ColumnsModel),
        )


def _source_fingerprint(reader: PairReader, files: Sequence[SourceFile]) -> dict[str, Any]:
    return {
        "format": reader.format,
        "id_column": reader.id_column,
        # Left out by default, so that a run begun before there was a choice can be gone on with.
        **({} if reader.pairs == BEST_WORST else {"pairs": reader.pairs}),
        "passthrough": [field.name for field in reader.passthrough],
        "files": {file.path: file.digest for file in files},
    }


def _model_fingerprints(config: Config) -> dict[str, Any]:
    """What identifies every number a model contributes; checks that the models fit each other."""
    models = config.torch_models()
    columns = {
        role: "columns"
        for role, section in (("policy", config.policy), ("reference", config.reference), ("reward", config.reward))
        if isinstance(section, (ColumnsModel, ColumnsReward))
    }
    if not models:
        return dict(columns)
    from pipeline.models.fingerprints import model_fingerprint
    from pipeline.models.loading import check_models

    check_models(models, config.tokens)
    fingerprints: dict[str, Any] = {role: model_fingerprint(model) for role, model in models.items()}
    if isinstance(config.reward, ClassifierReward):
        fingerprints["reward"]["max_length"] = config.reward.max_length
    unread = {"trl": {"max_prompt_length"}, "paper": {"truncation"}}[config.tokens.preset]
    only_date = None if {"policy", "reference"} & set(models) else {"date"}
    fingerprints["tokens"] = config.tokens.model_dump(mode="json", include=only_date, exclude=unread)
    return {**columns, **fingerprints}
