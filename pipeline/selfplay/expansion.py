"""From prompts to a subset of pairs: generate, annotate, pair, score, select. A round does it for its prompts, and
again for new prompts that were made of the selected ones.

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
from pipeline.steps.plan import Apply, Stage
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from pipeline.steps.step import OwnRows, Step, run_step

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
    """By role: policy, reward and, if there is one, reference."""


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

    def add(self, name: str, manifest: Manifest) -> None:
        """Count what a step dropped, and its seconds."""
        self.seconds[name] = manifest.extra.get("seconds", 0.0)
        self.add_drops(manifest)

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
    tokens, plain = config.tokens.fingerprint(), config.model_dump(mode="json")
    candidates = run_step(
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
            config=plain,
        ),
        config.run,
        config.storage,
    )
    counts.add("generate", candidates.manifest)
    counts.prompts, counts.candidates = prompts.num_kept, candidates.num_kept
    counts.tokens_generated += candidates.manifest.num_tokens.get(schema.RESPONSE_TOKENS, 0)
    reward = models.fingerprints["reward"]
    annotated = run_step(
        Step(
            kind=ANNOTATED,
            url=f"{url}/{ANNOTATED}",
            rows=OwnRows(rows=candidates, shard_rows=config.generate.shard_prompts),
            stages=annotate_stages(config),
            schema=schema.ANNOTATED_SCHEMA,
            fingerprint={"input": candidates.content, "reward": reward, "date": tokens["date"]},
            config=plain,
        ),
        config.run,
        config.storage,
    )
    counts.add("annotate", annotated.manifest)
    dropped = prompts.num_kept - annotated.num_kept
    if dropped > config.run.max_dropped * prompts.num_kept:
        raise TooManyDroppedError(
            f"{dropped} of {prompts.num_kept} prompts gave no answers with rewards ({json.dumps(counts.drops)}); "
            f"run.max_dropped allows a share of {config.run.max_dropped}. Look at the prompts and generate.max_tokens, "
            "or raise run.max_dropped and run again: nothing is generated again."
        )
    return annotated


def expand(models: Models, prompts: Dataset, url: str, counts: Counts) -> None:
    """Everything from prompts to the subset at `url`/subset; none is written if there is nothing to select.

    Raises:
        AlignpotError: what stopped it.
    """
    config = models.config
    annotated = generate_answers(models, prompts, url, counts)
    pairs = run_step(
        Step(
            kind=PAIRS,
            url=f"{url}/{PAIRS}",
            rows=OwnRows(rows=annotated, shard_rows=_PAIR_SHARD_ROWS, rows_out=None),
            stages=[Stage(name="pair", build=partial(_build_pair, config))],
            schema=schema.GENERATED_PAIR_SCHEMA,
            fingerprint={"input": annotated.content, "pair": config.pair.fingerprint()},
            config=config.model_dump(mode="json"),
        ),
        config.run.model_copy(update={"engine": "plain"}),
        config.storage,
    )
    counts.add("pair", pairs.manifest)
    counts.pairs = pairs.num_kept
    if not pairs.num_kept:
        return
    scoring = score_config(models, url, counts.pairs)
    summary, manifest = score(prepare_score(scoring, pairs))
    counts.add("score", manifest)
    counts.scored, counts.tokens_scored = summary.num_kept, sum(manifest.num_tokens.values())
    started = time.monotonic()
    try:
        [report] = select_subsets(prepare_select(scoring))
    except DataError as error:
        _log.warning("Nothing can be selected from %s: %s", url, error)
        return
    counts.seconds["select"] = time.monotonic() - started
    counts.selected, counts.margins = report["selection"]["k"], report["margins"]


def score_config(models: Models, url: str, num_pairs: int | None = None) -> Config:
    """The config that scores and selects the pairs at `url`; select.k is at most their number."""
    ours = models.config
    config = ours.scoring(models.policy, scored=f"{url}/scored", subset=f"{url}/subset")
    changes: dict[str, Any] = {}
    is_reference = models.fingerprints["policy"] == models.fingerprints.get("reference")
    if is_reference and ours.metric.name == "potential" and ours.objective.reads_reference:
        _log.warning("The policy is the reference still, so that all implicit margins are 0: metric.weight is 0 here")
        changes["metric"] = config.metric.model_copy(update={"weight": 0.0})
    if config.select is not None and config.select.k is not None and num_pairs is not None:
        changes["select"] = config.select.model_copy(update={"k": min(config.select.k, num_pairs)})
    return config.model_copy(update=changes)


def _build_pair(config: SelfPlayConfig) -> Apply:
    return partial(make_pairs, rule=config.pair)
