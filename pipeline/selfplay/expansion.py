"""From prompts to a subset of pairs, and from the prompts of a subset to new prompts. A round does the first for its
prompts, then the second, and the first again for the new prompts.

    expand:          prompts -> candidates/ -> annotated/ -> pairs/ -> scored/ -> subset/
    evolve_prompts:  subset/ -> tasks/ -> drafts/ -> prompts/

Each arrow is a step of its own, so that a killed round goes on with the shard it was at.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Config, Run, SelfPlayConfig, TorchModel
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import PAIRS, SUBSET, Manifest
from pipeline.data.place import Place
from pipeline.data.sealed import digest
from pipeline.errors import DataError, TooManyDroppedError
from pipeline.models.fingerprints import model_fingerprint
from pipeline.rewards.cache import cache_place
from pipeline.selfplay.candidates import generate_stage
from pipeline.selfplay.combined import fit_rewards, one_reward
from pipeline.selfplay.evolve import evolve_stage, plan_evolution, selected_prompts, template_fingerprint
from pipeline.selfplay.filters import filter_prompts
from pipeline.selfplay.pairing import make_pairs
from pipeline.sources.contamination import Contamination
from pipeline.steps.annotate import annotate_stages
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from pipeline.steps.shards import OwnRows
from pipeline.steps.step import Step, run_step
from pipeline.steps.work import Apply, Stage

PROMPTS: Final = "prompts"
CANDIDATES: Final = "candidates"
ANNOTATED: Final = "annotated"

_PAIR_SHARD_ROWS: Final = 4096
_REWARDS: Final = frozenset({"reward", "rewards"})
_OF_TEMPLATE: Final = frozenset({"chat_template", "date", "template", "template_kwargs"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfPlay:
    """A checked run whose settings are claimed, with the policy of one of its rounds."""

    config: SelfPlayConfig
    policy: TorchModel
    fingerprints: Mapping[str, Any]
    """What identifies every number of a model, by role: policy, reward and, if there is one, reference."""
    benchmarks: Contamination | None
    """What no new prompt may repeat."""

    def with_policy(self, policy: TorchModel) -> "SelfPlay":
        """The same run with another policy."""
        return replace(self, policy=policy, fingerprints={**self.fingerprints, "policy": model_fingerprint(policy)})

    def dataset(self, url: str, kind: str = SUBSET) -> Dataset:
        """The complete dataset at a URL. Raises SourceError if there is none."""
        return Dataset.open(Place.open(url, self.config.storage), kind)

    def prompts_of(self, subset: str) -> pa.Table:
        """The prompts of a subset's training pairs, each once, by id, as a table of PROMPT_SCHEMA."""
        provenance = [field.name for field in schema.PROVENANCE_FIELDS]
        return selected_prompts(
            self.dataset(subset).of_split(schema.TRAIN).table([schema.PROMPT_ID, schema.PROMPT, *provenance])
        )


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


def _run_counted(config: SelfPlayConfig, counts: Counts, source: Dataset, settings: Run, **step: Any) -> Dataset:
    """Run a step over the rows of a dataset. Its name for `counts` is that of its last stage."""
    rows = OwnRows(rows=source, shard_rows=config.generate.shard_prompts)
    fingerprint = {"input": source.content, **step.pop("fingerprint")}
    whole = {"rows": rows, "fingerprint": fingerprint, "config": config.model_dump(mode="json"), **step}
    made = run_step(Step(**whole), settings, config.storage)
    counts.seconds[step["stages"][-1].name] = made.manifest.extra.get("seconds", 0.0)
    counts.add_drops(made.manifest)
    return made


def generate_answers(run: SelfPlay, prompts: Dataset, url: str, counts: Counts) -> Dataset:
    """Candidates and their rewards: the datasets `url`/candidates and `url`/annotated; the second one is returned.

    Raises:
        TooManyDroppedError: a larger share of the prompts than run.max_dropped has no response with a reward.
    """
    config = run.config
    tokens = config.tokens.fingerprint()
    candidates = _run_counted(
        config,
        counts,
        prompts,
        config.run,
        kind=CANDIDATES,
        url=f"{url}/{CANDIDATES}",
        stages=[generate_stage(config, run.policy)],
        schema=schema.CANDIDATE_SCHEMA,
        fingerprint={
            "policy": run.fingerprints["policy"],
            "generate": config.generate.fingerprint(),
            "tokens": {name: value for name, value in tokens.items() if name in _OF_TEMPLATE},
        },
    )
    counts.prompts, counts.candidates = prompts.num_kept, candidates.num_kept
    wanted = schema.annotated_schema(config.reward_names)
    counts.tokens_generated += candidates.manifest.num_tokens.get(schema.RESPONSE_TOKENS, 0)
    annotated = _run_counted(
        config,
        counts,
        candidates,
        config.run,
        kind=ANNOTATED,
        url=f"{url}/{ANNOTATED}",
        stages=annotate_stages(config.members, config.tokens, wanted, cache_place(config.run, config.storage)),
        schema=wanted,
        fingerprint={"date": tokens["date"], **{key: run.fingerprints[key] for key in _REWARDS & {*run.fingerprints}}},
    )
    dropped = prompts.num_kept - annotated.num_kept
    if dropped > config.run.max_dropped * prompts.num_kept:
        raise TooManyDroppedError(
            f"{dropped} of {prompts.num_kept} prompts gave no answers with rewards ({json.dumps(counts.drops)}); "
            f"run.max_dropped allows a share of {config.run.max_dropped}. Look at the prompts and generate.max_tokens, "
            "or raise run.max_dropped and run again: nothing is generated again."
        )
    return annotated


def expand(run: SelfPlay, prompts: Dataset, url: str, counts: Counts) -> None:
    """Everything from prompts to the subset at `url`/subset; none is written if there is nothing to select."""
    config = run.config
    annotated = generate_answers(run, prompts, url, counts)
    combine = {} if config.combine is None else {"combine": config.combine.fingerprint()}
    pairs = _run_counted(
        config,
        counts,
        annotated,
        config.run.model_copy(update={"engine": "plain"}),
        kind=PAIRS,
        url=f"{url}/{PAIRS}",
        rows=OwnRows(rows=annotated, shard_rows=_PAIR_SHARD_ROWS, rows_out=None),
        stages=[Stage(name="pair", build=partial(_build_pair, config, annotated))],
        schema=schema.generated_pair_schema(config.reward_names),
        fingerprint={"pair": config.pair.fingerprint(), **combine},
    )
    counts.pairs = pairs.num_kept
    if not pairs.num_kept:
        return
    scoring = score_config(run, url, counts.pairs)
    _, manifest = score(*prepare_score(scoring, pairs))
    counts.seconds["score"] = manifest.extra.get("seconds", 0.0)
    counts.add_drops(manifest)
    counts.scored, counts.tokens_scored = manifest.num_kept, sum(manifest.num_tokens.values())
    started = time.monotonic()
    try:
        [report] = select_subsets(prepare_select(scoring))
    except DataError as error:
        _log.warning("Nothing can be selected from %s: %s", url, error)
        return
    counts.seconds["select"] = time.monotonic() - started
    counts.selected, counts.margins = report["selection"]["k"], report["margins"]


def evolve_prompts(
    run: SelfPlay, given: Sequence[pa.Table], number: int, subset: str, url: str, counts: Counts
) -> Dataset:
    """New prompts out of those of a subset: the dataset `url`/prompts, dropped ones with their reasons.

    The policy writes `url`/drafts; the filters judge all drafts together. No new prompt may repeat a given one.
    """
    config, started = run.config, time.monotonic()
    assert config.evolve is not None  # noqa: S101
    parents, settings = run.prompts_of(subset), config.evolve.model_dump(mode="json")
    tasks = plan_evolution(parents, config.evolve, round_=number)
    origin = {"evolve": settings, "subset": run.dataset(subset).content}
    asked = write_prompts(config, tasks, f"{url}/tasks", origin)
    step = Step(
        kind=PROMPTS,
        url=f"{url}/drafts",
        rows=OwnRows(rows=asked, shard_rows=config.generate.shard_prompts),
        stages=[evolve_stage(config, run.policy)],
        schema=schema.DRAFT_SCHEMA,
        fingerprint={
            "input": asked.content,
            "policy": run.fingerprints["policy"],
            "evolve": settings,
            "templates": template_fingerprint(config.evolve.strategies),
            "generate": config.generate.fingerprint(),
        },
        config=config.model_dump(mode="json"),
    )
    drafts = run_step(step, config.run, config.storage)
    table = drafts.table(kept_only=False)
    kept = filter_prompts(table, parents, given, config.evolve, run.benchmarks)
    prompts = kept.select(schema.PROMPT_SCHEMA.names)
    written = write_prompts(config, prompts, f"{url}/{PROMPTS}", {"input": drafts.content, "evolve": settings})
    counts.add_drops(written.manifest)
    counts.tokens_generated += pc.sum(table[schema.NUM_TOKENS_DRAFT], min_count=0).as_py()
    counts.seconds["evolve"] = time.monotonic() - started
    return written


def write_prompts(config: SelfPlayConfig, table: pa.Table, url: str, fingerprint: Mapping[str, Any]) -> Dataset:
    """A table of PROMPT_SCHEMA as a dataset; a dataset of another table or fingerprint at `url` is refused."""
    rows = table.combine_chunks().cast(schema.PROMPT_SCHEMA).to_pylist()
    step = Step(
        kind=PROMPTS,
        url=url,
        rows=OwnRows(rows=table, shard_rows=4096),
        stages=(),
        schema=schema.PROMPT_SCHEMA,
        fingerprint={**fingerprint, "rows": digest(json.dumps(rows, ensure_ascii=False).encode())},
        config=config.model_dump(mode="json"),
    )
    return run_step(step, config.run.model_copy(update={"engine": "plain"}), config.storage)


def score_config(run: SelfPlay, url: str, num_pairs: int | None = None) -> Config:
    """The config that scores and selects the pairs at `url`; select.k is at most their number."""
    ours = run.config
    config = ours.scoring(run.policy, scored=f"{url}/scored", subset=f"{url}/subset")
    changes: dict[str, Any] = {}
    is_reference = run.fingerprints["policy"] == run.fingerprints.get("reference")
    if is_reference and ours.metric.name == "potential" and ours.objective.reads_reference:
        _log.warning("The policy is the reference still, so that all implicit margins are 0: metric.weight is 0 here")
        changes["metric"] = config.metric.model_copy(update={"weight": 0.0})
    if config.select is not None and config.select.k is not None and num_pairs is not None:
        changes["select"] = config.select.model_copy(update={"k": min(config.select.k, num_pairs)})
    return config.model_copy(update=changes)


def _build_pair(config: SelfPlayConfig, annotated: Dataset) -> Apply:
    combine = config.combine
    if combine is None:
        return partial(make_pairs, rule=config.pair)
    rewards = annotated.table([schema.response_rewards(name) for name in combine.members])
    fitted = fit_rewards(rewards, combine)

    def paired(table: pa.Table) -> pa.Table:
        return make_pairs(one_reward(table, combine, fitted), config.pair, config.reward_names)

    return paired
