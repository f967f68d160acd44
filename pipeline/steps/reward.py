"""Give every response to a prompt its reward: no pairs, no log-probabilities.

    open source -> check the reward -> plan -> pending shards -> tokenise | annotate -> parts -> _SUCCESS.json

The stages are those by which self-play judges its candidates. As with `score`, the same config, run again, goes on.
"""

import time
from functools import partial
from typing import Final

from pipeline.config import RewardConfig
from pipeline.data.commit import check_writable
from pipeline.data.manifest import REWARDED, Manifest, find_manifest
from pipeline.data.place import Place
from pipeline.data.run import RUN_FILE, Run
from pipeline.rewards.cache import cache_place, check_cache
from pipeline.rewards.registry import reward_backends
from pipeline.sources.open import open_responses
from pipeline.steps.annotate import annotate_stages
from pipeline.steps.rows_to_score import check_ids, open_checked
from pipeline.steps.score import reward_tokens
from pipeline.steps.shards import SourceRows
from pipeline.steps.step import Step, begin_step, complete_step, pending_shards
from pipeline.steps.summary import ScoreSummary

_SHARD_ROWS: Final = 256


def prepare_reward(config: RewardConfig) -> tuple[RewardConfig, Step, Run]:
    """Check source, storage and reward, and write or find the plan: the arguments of `reward`.

    Raises an AlignpotError if anything is wrong, before any weights are read.
    """
    source = open_checked(config.source, config.storage, partial(open_responses, rewards=config.reward_names))
    backends = reward_backends(config.members)
    for backend in backends.values():
        backend.check(config.tokens, [field.name for field in source.reader.passthrough])
    fingerprints = {name: backend.fingerprint() for name, backend in backends.items()}
    place = Place.open(config.rewarded, config.storage)
    if find_manifest(place, REWARDED) is None:
        check_writable(place)
        check_cache(config.run, config.storage)
    given = config.model_dump(mode="json")
    given["source"] |= source.found
    config = config.with_members({name: backends[name].pinned(found) for name, found in fingerprints.items()})
    schema = source.reader.schema
    files = {file.path: file.digest for file in source.files}
    step = Step(
        kind=REWARDED,
        url=config.rewarded,
        rows=SourceRows(reader=source.reader, files=source.files, shard_rows=config.run.shard_rows or _SHARD_ROWS),
        stages=annotate_stages(config.members, config.tokens, schema, cache_place(config.run, config.storage)),
        schema=schema,
        fingerprint={
            "source": {**source.fingerprint, "files": files},
            **({"rewards": fingerprints} if config.rewards else {"reward": fingerprints[""]}),
            **reward_tokens(backends.values(), config.tokens),
        },
        config=given,
        source_format=source.reader.format,
        check=check_ids if source.reader.id_column is not None else None,
    )
    run = begin_step(step, config.storage)
    step.rows.check(run.plan.shards, run.place / RUN_FILE)
    return config, step, run


def reward(config: RewardConfig, step: Step, run: Run) -> tuple[ScoreSummary, Manifest]:
    """Give rewards in the shards that have no part yet, and publish the manifest.

    Raises the AlignpotError that stopped the run; parts committed so far stay.
    """
    started = time.monotonic()
    pending = pending_shards(step, run)
    manifest, totals = complete_step(step, run, pending, config.run)
    seconds = time.monotonic() - started
    summary = ScoreSummary(num_shards_done_now=len(pending), num_tokens_now=0, seconds=seconds, busy_s=totals.busy_s)
    return summary, manifest
