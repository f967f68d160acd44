"""Self-play: the policy answers, its answers are judged and paired, the pairs of most potential train the next policy.

    PATH/run.json                      the settings; another set of them is refused
    PATH/prompts/, held_out/           the prompts to train on, and those every policy is measured on
    PATH/measured-0/                   the first policy's answers to the held-out prompts
    PATH/round-1/base/                 candidates, annotated, pairs, scored, subset
    PATH/round-1/evolved/              tasks (prompts of the subset), drafts, prompts; then as base
    PATH/round-1/training-DIGEST/      the training's record; measured, after (margins), report.json
    PATH/policies/                     the trained models

A round: expand the prompts, make new prompts of the selected ones, expand those, train on both subsets, measure. Every
step finds what it did before, so that the same command goes on wherever it was killed.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Replicas, SelfPlayConfig, TorchModel
from pipeline.data.benchmarks import read_benchmarks
from pipeline.data.commit import check_writable, create
from pipeline.data.dataset import Dataset
from pipeline.data.files import REPORT_FILE
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.run import MINOR_VERSION, Plan, Run, find_plan
from pipeline.data.sealed import read_sealed, sealed
from pipeline.errors import DataError
from pipeline.faults import storage_errors
from pipeline.models.fingerprints import model_fingerprint, pinned
from pipeline.models.loading import check_models
from pipeline.observers.facts import Data, Facts
from pipeline.observers.observed import observed
from pipeline.rewards.cache import check_cache
from pipeline.rewards.registry import reward_backends
from pipeline.selfplay.combined import compared_with
from pipeline.selfplay.evaluation import compare_policies
from pipeline.selfplay.expansion import (
    PROMPTS,
    Counts,
    SelfPlay,
    evolve_prompts,
    expand,
    score_config,
    write_prompts,
)
from pipeline.selfplay.held_out import split_held_out
from pipeline.selfplay.policies import Trained, margins_after, measure, train_policy, training_job
from pipeline.selfplay.rounds_table import render_rounds
from pipeline.selfplay.seeds import read_prompts
from pipeline.training.job import check_training

KIND: Final = "self-play"

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Round:
    """What one round did, for its report."""

    number: int
    expansions: dict[str, Counts] = field(default_factory=dict)
    strategies: Counter[str] = field(default_factory=Counter)
    subsets: list[str] = field(default_factory=list)
    trained: Trained | None = None


def self_play(config: SelfPlayConfig) -> Iterator[str]:
    """Run every round that is not done yet, and yield the table of rounds after each.

    Raises:
        AlignpotError: what stopped it; what was done stays, and the same call goes on.
    """
    with ExitStack() as stack:
        settings = config.model_dump(mode="json")
        told = stack.enter_context(observed("self-play", config.path, settings, config.run.track))
        if config.run.on_ray(runs_models=True):
            from pipeline.on_ray.session import ray_session

            others = [config.policy, config.reference or config.policy]
            models: list[Replicas] = [config.generate, *config.members.values(), *others]
            stack.enter_context(ray_session(config.run, models))
        run, prompts, held_out = prepare(config)
        told.add(_tell, run, prompts)
        told.begin()
        yield f"{prompts.num_kept:,} prompts, {held_out.num_kept:,} held out\n"
        subsets: list[str] = []
        place = f"{run.config.path}/measured-0"
        first, counts = measure(run, held_out, place)
        body = {"evaluation": _compared(run, first, first), "measuring": asdict(counts)}
        reports = [_report(run, 0, body, place)]
        for number in range(1, config.rounds + 1):
            found = _play_round(run, number, prompts, subsets)
            subsets += found.subsets
            if found.trained is not None:
                run = run.with_policy(found.trained.policy)
            reports.append(_close(run, found, held_out, first))
            told.add(_tell_round, run, found, reports[-1])
            yield f"{render_rounds(reports)}\n"
        yield f"policy: {run.policy.model}"


def prepare(config: SelfPlayConfig) -> tuple[SelfPlay, Dataset, Dataset]:
    """Check models, training, prompts and places, claim the path, and write the prompts: the run, the prompts to train
    on, and those held out.

    Raises:
        AlignpotError: what is wrong, before a model is loaded.
    """
    config, fingerprints = _pinned(config)
    if config.train is not None:
        check_training(training_job(config, config.policy, ()))
    place = Place.open(config.path, config.storage)
    if find_plan(place, KIND) is None:  # a run that ended may lie where nothing can be written any more
        check_writable(place)
        check_cache(config.run, config.storage)
    source = Place.of_source(config.prompts.path, config.storage)
    benchmarks = read_benchmarks(config.prompts, config.storage)
    with storage_errors(config.prompts.path):
        seeds = read_prompts(source.fs, source.root, config.prompts, benchmarks)
    train, held_out, near = split_held_out(seeds.table, config.evaluate, config.prompts.seed)
    files = {file.path: f"{file.size}:{file.digest}" for file in seeds.files}
    fingerprint = {
        "alignpot": MINOR_VERSION,
        **config.fingerprint(),
        "prompts": {**config.prompts.fingerprint(), "files": files},
        **fingerprints,
        "benchmarks": None if benchmarks is None else benchmarks.digest,
    }
    Run.claim(place, Plan(kind=KIND, fingerprint=fingerprint, config=config.model_dump(mode="json")))
    left_out = [near, seeds.table.filter(pc.equal(seeds.table[schema.STATUS], schema.DROPPED))]
    for reason, count in Counter(pa.concat_tables(left_out)[schema.DROP_REASON].to_pylist()).most_common():
        _log.warning("%d prompts left out: %s", count, reason)
    run = SelfPlay(config=config, policy=config.policy, fingerprints=fingerprints, benchmarks=benchmarks)
    run = run.with_policy(config.policy)
    given = pa.concat_tables([train, *left_out])
    prompts = write_prompts(config, given, f"{config.path}/{PROMPTS}", {"side": "train"})
    return run, prompts, write_prompts(config, held_out, f"{config.path}/held_out", {"side": "held out"})


def _pinned(config: SelfPlayConfig) -> tuple[SelfPlayConfig, dict[str, Any]]:
    """The config with models and paths as workers read them, and what identifies the models, by role."""
    models: dict[str, TorchModel] = {"policy": config.policy}
    in_training = config.train is not None and config.train.method == "dpo"
    if config.needs_reference or in_training:
        models["reference"] = config.reference or config.policy
    check_models(models, config.tokens)
    rewards = reward_backends(config.members)
    for reward in rewards.values():
        reward.check(config.tokens, ())
    fingerprints = {role: model_fingerprint(model) for role, model in models.items()}
    pins: dict[str, Any] = {role: pinned(model, fingerprints[role]) for role, model in models.items()}
    of_members = {name: reward.fingerprint() for name, reward in rewards.items()}
    fingerprints |= {"rewards": of_members} if config.rewards else {"reward": of_members[""]}
    sections = {name: reward.pinned(of_members[name]) for name, reward in rewards.items()}
    path = config.path.rstrip("/") if "://" in config.path else str(Path(config.path).expanduser().resolve())
    return config.model_copy(update={**pins, "path": path}).with_members(sections), fingerprints


def _play_round(run: SelfPlay, number: int, prompts: Dataset, before: list[str]) -> Round:
    """Expand, evolve, expand, train."""
    config, found = run.config, Round(number=number)
    place = f"{config.path}/round-{number}"
    base = found.expansions["base"] = Counts()
    expand(run, prompts, f"{place}/base", base)
    if not _take(run, found, f"{place}/base/subset"):
        raise DataError(
            f"round {number}: {prompts.num_kept} prompts gave {base.pairs} pairs, too few to select from. Give "
            "more prompts, a larger generate.num_responses, or a larger select.fraction."
        )
    if config.evolve is not None:
        earlier = [f"round-{i}/evolved/{PROMPTS}" for i in range(1, number)]
        names = [PROMPTS, "held_out", *earlier]
        given = [run.dataset(f"{config.path}/{name}", PROMPTS).table() for name in names]
        counts = found.expansions["evolved"] = Counts()
        new = evolve_prompts(run, given, number, f"{place}/base/subset", f"{place}/evolved", counts)
        if new.num_kept:
            expand(run, new, f"{place}/evolved", counts)
            _take(run, found, f"{place}/evolved/subset")
    if config.train is not None:
        start = config.policy if config.train.start_from == "base" else run.policy
        subsets = found.subsets if config.train.data == "round" else [*before, *found.subsets]
        _log.info("round %d: training on %d subsets", number, len(subsets))
        found.trained = train_policy(run, start, subsets, place, number)
    return found


def _take(run: SelfPlay, found: Round, subset: str) -> bool:
    """Count a subset among those to train on; False if it is not there."""
    if Dataset.find(Place.open(subset, run.config.storage), SUBSET) is None:
        return False
    found.subsets.append(subset)
    found.strategies.update(run.prompts_of(subset)[schema.STRATEGY].to_pylist())
    return True


def _close(run: SelfPlay, found: Round, held_out: Dataset, first: pa.Table) -> dict[str, Any]:
    """Measure the policy that was trained and write the round's report, or find it."""
    trained, url = found.trained, f"{run.config.path}/round-{found.number}"
    place = url if trained is None else trained.url
    stored = read_sealed(Place.open(place, run.config.storage) / REPORT_FILE)
    if stored is not None:
        return stored
    body: dict[str, Any] = {
        "expansions": {name: asdict(counts) for name, counts in found.expansions.items()},
        "strategies": dict(sorted(found.strategies.items())),
    }
    if trained is not None:
        summary, policy = dict(trained.summary), trained.policy
        answers, counts = measure(run, held_out, f"{place}/measured")
        config = score_config(run, f"{url}/base")
        body |= {
            "training": {"summary": summary, "seconds": float(summary["seconds_in_all"]), "policy": policy.model},
            "evaluation": _compared(run, answers, first),
            "measuring": asdict(counts),
            "margins": margins_after(config, policy, found.subsets[0], f"{place}/after"),
        }
    return _report(run, found.number, body, place)


def _compared(run: SelfPlay, answers: pa.Table, first: pa.Table) -> dict[str, Any]:
    """How answers to the held-out prompts compare with those of the first policy, under all rewards together."""
    combine = run.config.combine
    if combine is not None:
        answers, first = (compared_with(each, first, combine) for each in (answers, first))
    return compare_policies(answers, first)


def _tell(facts: Facts, run: SelfPlay, prompts: Dataset) -> None:
    """The prompts that it starts from; what it makes is told round by round."""
    facts.inputs = [Data(url=run.config.prompts.path, num_rows=prompts.manifest.num_rows)]
    facts.fingerprint = {**run.fingerprints, "rounds": run.config.rounds}


def _tell_round(facts: Facts, run: SelfPlay, found: Round, report: Mapping[str, Any]) -> None:
    """The subsets of a round, and its report."""
    facts.outputs += [Data.of(run.dataset(subset), subset) for subset in found.subsets]
    facts.reports[f"{run.config.path}/round-{found.number}"] = report
    for name, counts in found.expansions.items():
        facts.counts |= {f"round-{found.number}/{name}/{key}": value for key, value in asdict(counts).items()}


def _report(run: SelfPlay, number: int, body: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The report of a round as it is stored: the first one wins, whose seconds are those of the work itself."""
    report = {"round": number, **body}
    file = Place.open(place, run.config.storage) / REPORT_FILE
    if create(file, sealed(report)):
        return report
    return read_sealed(file) or report
