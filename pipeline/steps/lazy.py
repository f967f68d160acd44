"""Score only the rows that can still be selected, by rounds of ordinary scoring runs.

    rewards of all rows -> a sample -> rows whose bound reaches the likely threshold -> the real one -> sealed dataset

Each round is a run of its own below the scored path (see `data.lazy`), with its plan, parts and manifest. A plan names
the rows of its round. So a run that was killed goes on with the round that it had begun, and several drivers work on
one round. What a round scored is never scored again. `selection.lazy` says which rows come next, and why that is exact.
"""

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import ColumnsReward, Config
from pipeline.data.dataset import Dataset
from pipeline.data.lazy import PROXY, round_name, sealed_name
from pipeline.data.manifest import LAZY, SCORED, Manifest
from pipeline.data.run import Plan, Run, find_plan
from pipeline.metrics.columns import BoolArray, single_array
from pipeline.metrics.ids import HashArray, id_hashes
from pipeline.models.fingerprints import model_fingerprint, pinned
from pipeline.models.loading import check_models
from pipeline.selection.columns import Columns
from pipeline.selection.lazy import first_rows, next_rows, passed_over
from pipeline.selection.ranking import Query, Ranking, rank
from pipeline.selection.selection import Reader
from pipeline.selection.source import Positions, Source, no_positions
from pipeline.steps.lazy_rows import LazyRows, SealedRows
from pipeline.steps.placed import layout_here, models_of, take_turns
from pipeline.steps.refusals import template_words
from pipeline.steps.score_stages import score_stages
from pipeline.steps.shards import PickedRows, picked_positions
from pipeline.steps.step import Step, begin_step, complete_step, pending_shards
from pipeline.steps.summary import ScoreSummary
from pipeline.steps.work import Stage, built_once

_APPROXIMATE: Final = "score.proxy: the small model scores every row first, and the subset is approximate."
_LOGPS: Final = {"policy": schema.LOGPS[:2], "reference": schema.LOGPS[2:]}


def lazy_step(config: Config, step: Step) -> Step:
    """The step of a scoring run without its forwards of policy and reference."""
    proxy = {} if config.score.proxy is None else {"proxy": model_fingerprint(config.score.proxy)}
    return replace(
        step,
        kind=LAZY,
        stages=[stage for stage in step.stages if stage.name not in _LOGPS],
        fingerprint={**step.fingerprint, "lazy": {"statistics_rows": config.score.statistics_rows, **proxy}},
    )


def pinned_proxy(config: Config) -> Config:
    """The config with its proxy, if it has one, as workers read it. Raises a ModelError if it cannot be used."""
    proxy = config.score.proxy
    if proxy is None:
        return config
    check_models({"policy": proxy}, config.tokens)
    score = config.score.model_copy(update={"proxy": pinned(proxy, model_fingerprint(proxy))})
    return config.model_copy(update={"score": score})


def score_lazily(config: Config, step: Step, run: Run) -> tuple[ScoreSummary, Manifest]:
    """Score what the selections of the config need, and publish the scored dataset. step: as `lazy_step` gives it.

    Raises the AlignpotError that stopped the run; parts committed so far stay. Also raises as a selection, if its rules
    leave no row.
    """
    started = time.monotonic()
    work = _Work(config=config)
    rewarded = Dataset(run.place, work.complete(step, run))
    lazy, queries = LazyRows.of(rewarded, _logps(config)), _queries(config, rewarded)
    sampled, repeated = first_rows(_hashes(rewarded), config.score.statistics_rows)
    if config.score.proxy is not None:
        scoring = _scoring_by_proxy(config, step, rewarded)
        begun = begin_step(scoring, config.storage)
        lazy.pass_over(_passed_over(Dataset(begun.place, work.complete(scoring, begun)), config, queries))
    with work.stages_of_rounds() as stages:
        for index in itertools.count():
            wanted = no_positions()
            if find_plan(run.place / round_name(index), SCORED) is None:
                wanted = _wanted(lazy, queries) if index else np.flatnonzero(sampled | repeated)
                if not wanted.size or not any(query.metric.reads_implicit for query in queries):
                    break
            scoring = _scoring_of(config, step, rewarded, wanted, index, stages)
            begun = begin_step(scoring, config.storage)
            scored = Dataset(begun.place, work.complete(scoring, begun))
            lazy.add(scored, picked_positions(begun.plan.shards), sampled)
    sealed = Dataset.find(run.place / sealed_name(index))
    if sealed is None:
        sealing = _sealing(step, lazy, queries, index)
        begun = begin_step(sealing, config.storage)
        manifest = work.complete(sealing, begun, engine="plain")
    else:  # its bounds may be those of another selection, which needed the same rows
        manifest = sealed.manifest
    return work.summary(time.monotonic() - started, manifest), manifest


def outlook(config: Config, run: Run) -> str:
    """How many rows the run will score, as far as that is known before it; in words. Writes nothing."""
    rewarded = Dataset.find(run.place, LAZY)
    if rewarded is None or Dataset.find(run.place / round_name(0)) is None:
        return (
            "score.lazy: policy and reference will score fewer rows than that. How many is known when the rewards and "
            f"the first {config.score.statistics_rows:,} scores are there: stop the run then, and ask again."
            f"{'' if config.score.proxy is None else f' {_APPROXIMATE}'}"
        )
    lazy, queries = LazyRows.of(rewarded, _logps(config)), _queries(config, rewarded)
    by_proxy = Dataset.find(run.place / PROXY)
    if config.score.proxy is not None and by_proxy is not None:
        lazy.pass_over(_passed_over(by_proxy, config, queries))
    sampled, _ = first_rows(_hashes(rewarded), config.score.statistics_rows)
    for index in itertools.count():
        scored, plan = (find(run.place / round_name(index), SCORED) for find in (Dataset.find, find_plan))
        if not isinstance(scored, Dataset) or not isinstance(plan, Plan):
            break
        lazy.add(scored, picked_positions(plan.shards), sampled)
    num_wanted, num_scored = _wanted(lazy, queries).size, int(np.count_nonzero(lazy.scoring))
    saved = 1 - (num_wanted + num_scored) / max(1, lazy.scoring.size)
    return (
        f"score.lazy: {num_scored:,} of {lazy.scoring.size:,} rows are scored, and about {num_wanted:,} more will be. "
        f"{saved:.0%} of the forwards of policy and reference are saved."
        f"{'' if config.score.proxy is None else f' {_APPROXIMATE}'}"
    )


@dataclass(slots=True, kw_only=True)
class _Work:
    """Runs the steps of a lazy run, and counts what they took."""

    config: Config
    num_shards: int = 0
    num_tokens: int = 0
    busy_s: Counter[str] = field(default_factory=Counter)

    def complete(self, step: Step, run: Run, **settings: Any) -> Manifest:
        """Run what is left of a step. settings: keys of the section run that differ."""
        pending = pending_shards(step, run)
        manifest, totals = complete_step(step, run, pending, self.config.run.model_copy(update=settings))
        self.num_shards += len(pending)
        self.num_tokens += totals.num_tokens if step.kind == SCORED and step.stages else 0
        self.busy_s.update(totals.busy_s)
        return manifest

    @contextmanager
    def stages_of_rounds(self) -> Iterator[list[Stage]]:
        """Policy and reference, built once for all rounds where they all stay in the memory of this process."""
        settings, stages = self.config.run, _round_stages(self.config)
        if settings.on_ray(runs_models=True) or take_turns(stages, layout_here(models_of(stages), settings)):
            yield stages
            return
        # From the second round on, the models themselves take the memory by which `auto` would decide.
        self.config = self.config.model_copy(update={"run": settings.model_copy(update={"placement": "pooled"})})
        with built_once(stages) as stages:
            yield stages

    def summary(self, seconds: float, manifest: Manifest) -> ScoreSummary:
        """Of all steps."""
        return ScoreSummary(
            num_shards_done_now=self.num_shards,
            num_tokens_now=self.num_tokens,
            seconds=seconds,
            template_words=template_words(self.config, manifest),
            busy_s=self.busy_s,
        )


def _round_stages(config: Config) -> list[Stage]:
    """Policy and reference, over rows that have their rewards."""
    return score_stages(config.with_members({name: ColumnsReward(backend="columns") for name in config.members}))


def _scoring_of(
    config: Config, step: Step, rewarded: Dataset, rows: Positions, index: int, stages: Sequence[Stage]
) -> Step:
    """A round: these stages over these rows."""
    shard_rows = config.run.shard_rows or 256
    return replace(
        step,
        kind=SCORED,
        url=f"{step.url.rstrip('/')}/{round_name(index)}",
        rows=PickedRows(rows=rewarded, positions=rows, shard_rows=shard_rows),
        stages=stages,
        fingerprint={**step.fingerprint, "round": index},
        source_format="alignpot",
        check=None,
    )


def _scoring_by_proxy(config: Config, step: Step, rewarded: Dataset) -> Step:
    """A round over all rows, with the proxy in the place of the policy."""
    instead = config.model_copy(update={"policy": config.score.proxy, "reference": None})
    rows, stages = np.arange(rewarded.num_kept), _round_stages(instead)
    scoring = _scoring_of(instead, step, rewarded, rows, 0, stages)
    return replace(scoring, url=f"{step.url.rstrip('/')}/{PROXY}", fingerprint={**step.fingerprint, "round": PROXY})


def _passed_over(by_proxy: Dataset, config: Config, queries: Sequence[Query]) -> BoolArray:
    """Kept rows that no selection needs, as the proxy ranks them; those that it dropped are for the policy."""
    assert config.score.proxy is not None  # noqa: S101 - the caller asks
    outcomes = [single_array(table, schema.STATUS) for table in by_proxy.tables([schema.STATUS], kept_only=False)]
    is_kept = np.concatenate([np.zeros(0, dtype=np.bool_), *(np.asarray(each) == schema.KEPT for each in outcomes)])
    found: BoolArray = is_kept.copy()
    for query in queries:
        if query.metric.reads_implicit:
            ranked = _ranked(by_proxy, query)
            found[is_kept] &= passed_over(by_proxy, *ranked, config.score.proxy.superset)
    return found


def _wanted(lazy: LazyRows, queries: Sequence[Query]) -> Positions:
    """Places of the rows that a query needs next."""
    found = [next_rows(lazy, *_ranked(lazy, query)) for query in queries if query.metric.reads_implicit]
    places: Positions = lazy.places[np.unique(np.concatenate([no_positions(), *found]))]
    return places


def _ranked(rows: Source, query: Query) -> tuple[Columns, Ranking]:
    columns, repeats = Reader(rows, [query]).for_query(query)
    return columns, rank(columns, query, repeats)


def _sealing(step: Step, lazy: LazyRows, queries: Sequence[Query], num_rounds: int) -> Step:
    """The scored dataset: every row, with the scores of all rounds and the bounds under the first query."""
    rankings = [_ranked(lazy, query)[1] for query in queries]
    bounds = np.full(lazy.scoring.size, np.nan)
    if rankings[0].bounds.size:
        bounds[lazy.places] = rankings[0].bounds
    columns = pa.schema([*step.schema, *schema.LAZY_FIELDS])
    fitted = [ranking.fitted.to_dict() for ranking in rankings]
    numbers = np.bincount(lazy.scoring[lazy.places], minlength=len(schema.SCORINGS)).tolist()
    counts = dict(zip(schema.SCORINGS, numbers, strict=True))
    approximate: dict[str, Any] = {}
    if not counts[schema.PASSED_OVER]:
        del counts[schema.PASSED_OVER]
    else:
        of_them = _hashes(lazy.rewarded)[lazy.scoring == schema.SCORINGS.index(schema.PASSED_OVER)]
        approximate = {"approximate": True, "passed_over_digest": f"{int(of_them.sum(dtype=np.uint64)):016x}"}
    return replace(
        step,
        kind=SCORED,
        url=f"{step.url.rstrip('/')}/{sealed_name(num_rounds)}",
        rows=SealedRows(lazy=lazy, bounds=bounds, schema=columns),
        stages=[],
        schema=columns,
        fingerprint={**step.fingerprint, "bounds": fitted[0], **approximate},
        check=None,
        extra={"lazy": {**step.fingerprint["lazy"], **counts, **approximate, "rounds": num_rounds, "fitted": fitted}},
    )


def _logps(config: Config) -> list[str]:
    """The columns that rounds fill."""
    return [name for role in _LOGPS if role in config.torch_models() for name in _LOGPS[role]]


def _queries(config: Config, rewarded: Dataset) -> list[Query]:
    return [
        Query(objective=each.objective, metric=each.metric, rule=each.select).on(rewarded.schema)
        for each in config.variants()
        if each.select is not None
    ]


def _hashes(dataset: Dataset) -> HashArray:
    hashes = [id_hashes(single_array(table, schema.ID)) for table in dataset.tables([schema.ID])]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
