"""From prompts to a subset of pairs: generate, annotate, pair, score, select. A round does it for its prompts, and
again for those that were made of the selected ones.

    prompts -> candidates/ -> annotated/ -> pairs/ -> scored/ -> subset/

Each arrow is a step of its own, so that a killed round goes on with the shard it was at.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from pipeline import schema
from pipeline.config import Config, SelfPlayConfig, TorchModel
from pipeline.errors import DataError, TooManyDroppedError
from pipeline.flows.score import drops_by_reason, prepare_score, score
from pipeline.flows.select import prepare_select, select_subsets
from pipeline.flows.step import DatasetReader, Step, content_of, open_step, run_step
from pipeline.generation.pairing import make_pairs
from pipeline.generation.stages import annotate_stages, generate_stage
from pipeline.stages.plan import Stage
from pipeline.storage.manifest import Manifest
from pipeline.storage.parts import PARTS_FOLDER

PROMPTS: Final = "prompts"
CANDIDATES: Final = "candidates"
ANNOTATED: Final = "annotated"
PAIRS: Final = "pairs"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actors:
    """The models of one round, and what identifies every number they give."""

    config: SelfPlayConfig
    policy: TorchModel
    fingerprints: Mapping[str, Any]
    """By role: policy, reward and, where there is one, reference."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """What was done on the way to a subset, for reports."""

    prompts: int = 0
    candidates: int = 0
    pairs: int = 0
    scored: int = 0
    tokens_scored: int = 0
    selected: int = 0
    tokens_generated: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    margins: dict[str, Any] = field(default_factory=dict)

    def add_drops(self, manifest: Manifest) -> None:
        """Count what a step dropped, but for what an earlier step had."""
        for reason, count in drops_by_reason(manifest).items():
            if not reason.endswith("dropped_before"):
                self.drops[reason] = self.drops.get(reason, 0) + count


def generate_answers(actors: Actors, prompts: Manifest, prompts_url: str, url: str, counts: Counts) -> Manifest:
    """Candidates and their rewards: the datasets `url`/candidates and `url`/annotated; the second one's manifest.

    Raises:
        TooManyDroppedError: a larger share of the prompts than run.max_dropped has no response with a reward.
    """
    config = actors.config
    tokens = config.tokens.fingerprint()
    candidates = _timed(
        counts,
        "generate",
        Step(
            kind=CANDIDATES,
            url=f"{url}/{CANDIDATES}",
            reader=DatasetReader(dataset=open_step(prompts_url, PROMPTS, config.storage)),
            num_rows=prompts.num_scored,
            shard_rows=config.generate.shard_prompts,
            stages=[generate_stage(config, actors.policy)],
            schema=schema.CANDIDATE_SCHEMA,
            fingerprint={
                "input": content_of(prompts),
                "policy": actors.fingerprints["policy"],
                "generate": config.generate.fingerprint(),
                "tokens": {name: tokens[name] for name in ("chat_template", "date")},
            },
            config=config.model_dump(mode="json"),
        ),
        config,
    )
    counts.prompts, counts.candidates = prompts.num_scored, candidates.num_scored
    counts.tokens_generated += candidates.num_tokens.get(schema.RESPONSE_TOKENS, 0)
    annotated = _timed(
        counts,
        "annotate",
        Step(
            kind=ANNOTATED,
            url=f"{url}/{ANNOTATED}",
            reader=DatasetReader(dataset=open_step(f"{url}/{CANDIDATES}", CANDIDATES, config.storage)),
            num_rows=candidates.num_scored,
            shard_rows=config.generate.shard_prompts,
            stages=annotate_stages(config),
            schema=schema.ANNOTATED_SCHEMA,
            fingerprint={
                "input": content_of(candidates),
                "reward": actors.fingerprints["reward"],
                "date": tokens["date"],
            },
            config=config.model_dump(mode="json"),
        ),
        config,
    )
    _check_dropped(config, prompts, annotated, counts)
    return annotated


def expand(actors: Actors, prompts: Manifest, prompts_url: str, url: str, counts: Counts) -> None:
    """Everything from prompts to the subset at `url`/subset; none is written where there is nothing to select.

    Raises:
        AlignpotError: what stopped it.
    """
    annotated = generate_answers(actors, prompts, prompts_url, url, counts)
    pairs = _pair(actors.config, annotated, url, counts)
    if pairs.num_scored:
        _score_and_select(actors, url, counts)


def _pair(config: SelfPlayConfig, annotated: Manifest, url: str, counts: Counts) -> Manifest:
    pairs = _timed(
        counts,
        "pair",
        Step(
            kind=PAIRS,
            url=f"{url}/{PAIRS}",
            reader=DatasetReader(dataset=open_step(f"{url}/{ANNOTATED}", ANNOTATED, config.storage)),
            num_rows=annotated.num_scored,
            shard_rows=4096,
            stages=[Stage(name="pair", build=partial(_pair_stage, config))],
            schema=schema.GENERATED_PAIR_SCHEMA,
            fingerprint={"input": content_of(annotated), "pair": config.pair.fingerprint()},
            config=config.model_dump(mode="json"),
            rows_out=None,
        ),
        config.model_copy(update={"run": config.run.model_copy(update={"engine": "plain"})}),
    )
    counts.pairs = pairs.num_scored
    return pairs


def _pair_stage(config: SelfPlayConfig) -> Any:
    return partial(make_pairs, rule=config.pair)


def _score_and_select(actors: Actors, url: str, counts: Counts) -> None:
    config = score_config(actors, url, counts.pairs)
    scoring = prepare_score(config)
    summary, manifest = score(scoring)
    counts.add_drops(manifest)
    counts.scored, counts.tokens_scored = summary.num_scored, sum(manifest.num_tokens.values())
    counts.seconds["score"] = manifest.extra.get("seconds", 0.0)
    started = time.monotonic()
    try:
        [report] = select_subsets(prepare_select(config))
    except DataError as error:
        _log.warning("Nothing can be selected from %s: %s", url, error)
        return
    counts.seconds["select"] = time.monotonic() - started
    counts.selected, counts.margins = report["selection"]["k"], report["margins"]


def score_config(actors: Actors, url: str, num_pairs: int | None = None) -> Config:
    """The config that scores and selects the pairs at `url`, of which select.k takes no more than there are."""
    pairs = f"{url}/{PAIRS}/{PARTS_FOLDER}"
    config = actors.config.scoring(actors.policy, pairs=pairs, scored=f"{url}/scored", subset=f"{url}/subset")
    changes: dict[str, Any] = {"metric": config.metric.model_copy(update=_weight(actors))}
    if config.select is not None and config.select.k is not None and num_pairs is not None:
        changes["select"] = config.select.model_copy(update={"k": min(config.select.k, num_pairs)})
    return config.model_copy(update=changes)


def _weight(actors: Actors) -> dict[str, float]:
    """A policy that still is the reference has implicit margins of zero: the potential is the explicit margin then."""
    config = actors.config
    is_reference = actors.fingerprints["policy"] == actors.fingerprints.get("reference")
    if is_reference and config.metric.name == "potential" and config.objective.reads_reference:
        _log.warning("The policy is the reference still, so that all implicit margins are 0: metric.weight is 0 here")
        return {"weight": 0.0}
    return {}


def _timed(counts: Counts, name: str, step: Step, config: SelfPlayConfig) -> Manifest:
    _log.info("%s: %s rows to %s", name, f"{step.num_rows:,}", step.url)
    manifest = run_step(step, config.run, config.storage)
    counts.seconds[name] = manifest.extra.get("seconds", 0.0)
    counts.add_drops(manifest)
    return manifest


def _check_dropped(config: SelfPlayConfig, prompts: Manifest, annotated: Manifest, counts: Counts) -> None:
    dropped = prompts.num_scored - annotated.num_scored
    if dropped > config.run.max_dropped * prompts.num_scored:
        raise TooManyDroppedError(
            f"{dropped} of {prompts.num_scored} prompts gave no answers with rewards ({json.dumps(counts.drops)}); "
            f"run.max_dropped allows a share of {config.run.max_dropped}. Look at the prompts and generate.max_tokens, "
            "or raise run.max_dropped and run again: nothing is generated again."
        )
