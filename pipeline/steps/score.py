"""Score a preference dataset: the table of contents of the main job.

    open source -> check models -> plan (run.json) -> pending shards -> stages -> parts -> _SUCCESS.json

Everything that can be wrong is found before a model is loaded. The same config, run again, continues where it stopped.
If it had finished, it does nothing.
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import ColumnsModel, Config, RewardConfig, Tokens, TorchModel, resolved
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import LAZY, SCORED, Manifest, find_manifest
from pipeline.data.place import Place
from pipeline.data.run import RUN_FILE, Run, find_plan
from pipeline.errors import TooManyDroppedError
from pipeline.models.fingerprints import model_fingerprint, pinned
from pipeline.models.loading import check_models
from pipeline.rewards.backend import Backend
from pipeline.rewards.cache import check_cache
from pipeline.rewards.registry import reward_backends
from pipeline.schema import with_leads
from pipeline.steps.grouped import as_planned, grouped
from pipeline.steps.lazy import lazy_step, pinned_proxy, score_lazily
from pipeline.steps.refusals import template_words, with_words
from pipeline.steps.reward_stage import extra_columns
from pipeline.steps.rows_to_score import rows_of_dataset, rows_of_sources
from pipeline.steps.score_stages import score_stages
from pipeline.steps.step import Step, begin_step, complete_step, first_rows, pending_shards
from pipeline.steps.summary import ScoreSummary


def prepare_score(config: Config, pairs: Dataset | None = None) -> tuple[Config, Step, Run]:
    """Check source, storage and models, and write or find the plan. To group prompts, the pairs are written first.

    pairs: a dataset of ours to score, in place of the config's source.

    Returns:
        The arguments of `score`: the config with its models pinned, the step, and its claimed place.

    Raises an AlignpotError if anything is wrong, before any weights are read.
    """
    config, step = scoring_step(config, pairs)
    begun = find_plan(Place.open(step.url, config.storage), step.kind)
    wanted = grouped(config, step) if config.run.group_prompts and begun is None else step
    run = begin_step(wanted, config.storage)
    as_planned(step, run).rows.check(run.plan.shards, run.place / RUN_FILE)
    return config, step, run


def scoring_step(config: Config, pairs: Dataset | None = None) -> tuple[Config, Step]:
    """The first two values of `prepare_score`, with the same checks; claims nothing."""
    source = rows_of_sources(config) if pairs is None else rows_of_dataset(config, pairs)
    models = _model_fingerprints(config, extra_columns(source["schema"]))
    place = Place.open(config.scored, config.storage)
    if find_manifest(place, LAZY if config.score.lazy else SCORED) is None:
        check_writable(place)
        check_cache(config.run, config.storage)
    given = resolved(config)
    if pairs is None:
        given |= source.pop("given")
    pins: dict[str, Any] = {role: pinned(model, models[role]) for role, model in _causal_models(config).items()}
    of_members = models.get("rewards", {"": models.get("reward")})
    rewards = reward_backends(config.members)
    sections = {name: reward.pinned(of_members[name]) for name, reward in rewards.items()}
    source["schema"] = with_leads(source["schema"], [name for name, reward in rewards.items() if reward.compares])
    config = config.model_copy(update=pins).with_members(sections)
    config = pinned_proxy(config)
    source["fingerprint"] = {"source": source["fingerprint"], **models}
    step = Step(kind=SCORED, url=config.scored, stages=score_stages(config), config=given, **source)
    return config, lazy_step(config, step) if config.score.lazy else step


def score(config: Config, step: Step, run: Run) -> tuple[ScoreSummary, Manifest]:
    """Score the shards that have no part yet and publish the manifest. Arguments as `prepare_score` gives them.

    Raises the AlignpotError that stopped the run; parts committed so far stay.
    """
    step = as_planned(step, run)
    if config.score.lazy:
        return score_lazily(config, step, run)
    started = time.monotonic()
    pending = pending_shards(step, run)
    if len(pending) and any(model.fp8 for model in config.torch_models().values()):
        _check_fp8(config, step, run, pending)
    manifest, totals = complete_step(step, run, pending, config.run)
    summary = ScoreSummary(
        num_shards_done_now=len(pending),
        num_tokens_now=totals.num_tokens,
        seconds=time.monotonic() - started,
        template_words=template_words(config, manifest),
        busy_s=totals.busy_s,
        overlap_s=totals.overlap_s,
    )
    return summary, manifest


def _check_fp8(config: Config, step: Step, run: Run, pending: NDArray[np.int64]) -> None:
    """See check_ranks. With Ray it runs on a node that has a GPU."""
    from pipeline.steps.fp8_ranks import NUM_RANKED, check_ranks

    rows = pa.concat_tables(first_rows(step, run, pending, NUM_RANKED)).slice(0, NUM_RANKED)
    if not config.run.on_ray(runs_models=True):
        check_ranks(config, rows)
        return
    from pipeline.on_ray.placement import reserved_by_one_call
    from pipeline.on_ray.session import ray_session
    from pipeline.on_ray.tasks import call_on_cluster

    models = list(config.torch_models().values())
    with ray_session(config.run, models):
        call_on_cluster(partial(check_ranks, config), rows, **reserved_by_one_call(models))


def check_dropped(config: Config | RewardConfig, manifest: Manifest) -> None:
    """Raise a TooManyDroppedError if the share of dropped rows is over the limit."""
    if manifest.fraction_dropped > config.run.max_dropped:
        words = template_words(config, manifest) if isinstance(config, Config) else ""
        counts = manifest.drops_by_reason.items()
        reasons = ", ".join(f"{with_words(reason, words)}: {count}" for reason, count in counts)
        raise TooManyDroppedError(
            f"{manifest.num_dropped} of {manifest.num_rows} rows were dropped ({reasons}); run.max_dropped allows a "
            f"share of {config.run.max_dropped}. Mend the source, or raise run.max_dropped and run again: nothing is "
            "rescored."
        )


def _model_fingerprints(config: Config, columns: Sequence[str]) -> dict[str, Any]:
    """What identifies every number of a model or reward; checks that they can be used and fit each other.

    columns: names of the further columns of the rows.
    """
    models, rewards = _causal_models(config), reward_backends(config.members)
    found: dict[str, Any] = {
        role: section.fingerprint()
        for role, section in (("policy", config.policy), ("reference", config.reference))
        if isinstance(section, ColumnsModel)
    }
    if models:
        check_models(models, config.tokens)
    for reward in rewards.values():
        reward.check(config.tokens, columns)
    of_members = {name: rewards.get(name, section).fingerprint() for name, section in config.members.items()}
    if of_members:
        found |= {"rewards": of_members} if config.rewards else {"reward": of_members[""]}
    found |= {role: model_fingerprint(model) for role, model in models.items()}
    if models:
        return found | {"tokens": config.tokens.fingerprint()}
    return found | reward_tokens(rewards.values(), config.tokens)


def reward_tokens(rewards: Iterable[Backend[Any]], tokens: Tokens) -> dict[str, Any]:
    """What a fingerprint holds of the section tokens for rewards alone: they have their own templates and lengths."""
    if not any(reward.reads_ids for reward in rewards):
        return {}
    return {"tokens": {name: value for name, value in tokens.fingerprint().items() if name in ("date", "template")}}


def _causal_models(config: Config) -> dict[str, TorchModel]:
    return {role: model for role, model in config.torch_models().items() if role in ("policy", "reference")}
