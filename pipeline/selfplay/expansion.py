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
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest
from pipeline.errors import DataError, TooManyDroppedError
from pipeline.selfplay.pairing import make_pairs
from pipeline.selfplay.plan import annotate_stages, generate_stage
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from pipeline.steps.shards import OwnRows
from pipeline.steps.step import Step, run_step
from pipeline.steps.work import Stage

PROMPTS: Final = "prompts"
CANDIDATES: Final = "candidates"
ANNOTATED: Final = "annotated"
PAIRS: Final = "pairs"

_PAIR_SHARD_ROWS: Final = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
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
        """Count what a step dropped."""
        for reason, count in manifest.drops_by_reason.items():
            self.drops[reason] = self.drops.get(reason, 0) + count


def generate_answers(models: Models, prompts: Dataset, url: str, counts: Counts) -> Dataset:
    """Candidates and their rewards: the datasets `url`/candidates and `url`/annotated; the second one is returned.

    Raises:
        TooManyDroppedError: a larger share of the prompts than run.max_dropped has no response with a reward.
    """
    config = models.config
    tokens = config.tokens.fingerprint()
    candidates = _made(
        models,
        counts,
        "generate",
        Step(
            kind=CANDIDATES,
            url=f"{url}/{CANDIDATES}",
            rows=OwnRows(rows=prompts, shard_rows=config.generate.shard_prompts),
            stages=[generate_stage(config, models.policy)],
            schema=schema.CANDIDATE_SCHEMA,
            fingerprint={
                "input": prompts.content,
                "policy": models.fingerprints["policy"],
                "generate": config.generate.fingerprint(),
                "tokens": {name: tokens[name] for name in ("chat_template", "date")},
            },
            config=config.model_dump(mode="json"),
        ),
    )
    counts.prompts, counts.candidates = prompts.num_kept, candidates.num_kept
    counts.tokens_generated += candidates.manifest.num_tokens.get(schema.RESPONSE_TOKENS, 0)
    annotated = _made(
        models,
        counts,
        "annotate",
        Step(
            kind=ANNOTATED,
            url=f"{url}/{ANNOTATED}",
            rows=OwnRows(rows=candidates, shard_rows=config.generate.shard_prompts),
            stages=annotate_stages(config),
            schema=schema.ANNOTATED_SCHEMA,
            fingerprint={
                "input": candidates.content,
                "reward": models.fingerprints["reward"],
                "date": tokens["date"],
            },
            config=config.model_dump(mode="json"),
        ),
    )
    dropped = prompts.num_kept - annotated.num_kept
    if dropped > config.run.max_dropped * prompts.num_kept:
        raise TooManyDroppedError(
            f"{dropped} of {prompts.num_kept} prompts gave no answers with rewards ({json.dumps(counts.drops)}); "
            f"run.max_dropped allows a share of {config.run.max_dropped}. Look at the prompts and generate.max_tokens, "
            "or raise run.max_dropped and run again: nothing is generated again."
        )
    return annotated


def expand(models: Models, prompts: Dataset, url: str, counts: Counts) -> None:
    """Everything from prompts to the subset at `url`/subset; none is written where there is nothing to select.

    Raises:
        AlignpotError: what stopped it.
    """
    config = models.config
    annotated = generate_answers(models, prompts, url, counts)
    pairs = _made(
        models,
        counts,
        "pair",
        Step(
            kind=PAIRS,
            url=f"{url}/{PAIRS}",
            rows=OwnRows(rows=annotated, shard_rows=_PAIR_SHARD_ROWS, rows_out=None),
            stages=[Stage(name="pair", build=partial(_pair_stage, config))],
            schema=schema.GENERATED_PAIR_SCHEMA,
            fingerprint={"input": annotated.content, "pair": config.pair.fingerprint()},
            config=config.model_dump(mode="json"),
        ),
        engine="plain",
    )
    counts.pairs = pairs.num_kept
    if pairs.num_kept:
        _score_and_select(models, pairs, url, counts)


def _pair_stage(config: SelfPlayConfig) -> Any:
    return partial(make_pairs, rule=config.pair)


def _score_and_select(models: Models, pairs: Dataset, url: str, counts: Counts) -> None:
    config = score_config(models, url, counts.pairs)
    _, manifest = score(*prepare_score(config, pairs))
    counts.add_drops(manifest)
    counts.scored, counts.tokens_scored = manifest.num_kept, sum(manifest.num_tokens.values())
    counts.seconds["score"] = manifest.extra.get("seconds", 0.0)
    started = time.monotonic()
    try:
        [report] = select_subsets(prepare_select(config))
    except DataError as error:
        _log.warning("Nothing can be selected from %s: %s", url, error)
        return
    counts.seconds["select"] = time.monotonic() - started
    counts.selected, counts.margins = report["selection"]["k"], report["margins"]


def score_config(models: Models, url: str, num_pairs: int | None = None) -> Config:
    """The config that scores and selects the pairs at `url`, of which select.k takes no more than there are."""
    config = models.config.scoring(models.policy, scored=f"{url}/scored", subset=f"{url}/subset")
    changes: dict[str, Any] = {"metric": config.metric.model_copy(update=_weight(models))}
    if config.select is not None and config.select.k is not None and num_pairs is not None:
        changes["select"] = config.select.model_copy(update={"k": min(config.select.k, num_pairs)})
    return config.model_copy(update=changes)


def _weight(models: Models) -> dict[str, float]:
    """A policy that still is the reference has implicit margins of zero: the potential is the explicit margin then."""
    config = models.config
    is_reference = models.fingerprints["policy"] == models.fingerprints.get("reference")
    if is_reference and config.metric.name == "potential" and config.objective.reads_reference:
        _log.warning("The policy is the reference still, so that all implicit margins are 0: metric.weight is 0 here")
        return {"weight": 0.0}
    return {}


def _made(models: Models, counts: Counts, name: str, step: Step, engine: str | None = None) -> Dataset:
    """The dataset of a step, made or found; what it took is counted."""
    config = models.config
    settings = config.run if engine is None else config.run.model_copy(update={"engine": engine})
    _log.info("%s: to %s", name, step.url)
    made = run_step(step, settings, config.storage)
    counts.seconds[name] = made.manifest.extra.get("seconds", 0.0)
    counts.add_drops(made.manifest)
    return made
