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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Replicas, SelfPlayConfig, TorchModel
from pipeline.data.commit import check_writable, create
from pipeline.data.dataset import Dataset
from pipeline.data.files import REPORT_FILE
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.run import MINOR_VERSION, Plan, Run, find_plan
from pipeline.data.sealed import digest, read_sealed, sealed
from pipeline.errors import DataError
from pipeline.faults import storage_errors
from pipeline.models.fingerprints import model_fingerprint
from pipeline.models.loading import check_models
from pipeline.selfplay.contamination import Contamination, read_benchmark
from pipeline.selfplay.evaluation import compare_policies
from pipeline.selfplay.evolution import Known, evolve_prompts, prompts_of, write_prompts
from pipeline.selfplay.expansion import PROMPTS, Counts, Models, expand, score_config
from pipeline.selfplay.held_out import split_held_out
from pipeline.selfplay.policies import Trained, as_plain, margins_after, measure, train_policy, training_job
from pipeline.selfplay.rounds_table import render_rounds
from pipeline.selfplay.seeds import read_prompts
from pipeline.steps.score import pinned
from pipeline.training.check import check_training

KIND: Final = "self-play"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfPlay:
    """A checked run: its settings are claimed, its prompts are written."""

    config: SelfPlayConfig
    prompts: Dataset
    held_out: Dataset
    fingerprints: Mapping[str, Any]
    benchmarks: Contamination | None

    def url(self, *names: str) -> str:
        """The URL of something below the run's path."""
        return "/".join([self.config.path.rstrip("/"), *names])

    def models(self, policy: TorchModel) -> Models:
        """The models with this policy."""
        fingerprints = {**self.fingerprints, "policy": model_fingerprint(policy)}
        return Models(config=self.config, policy=policy, fingerprints=fingerprints)


@dataclass(slots=True, kw_only=True)
class Round:
    """What one round did, for its report."""

    number: int
    expansions: dict[str, Counts] = field(default_factory=dict)
    strategies: Counter[str] = field(default_factory=Counter)
    subsets: list[str] = field(default_factory=list)


def self_play(config: SelfPlayConfig) -> Iterator[str]:
    """Run every round that is not done yet, and yield the table of rounds after each.

    Raises:
        AlignpotError: what stopped it; what was done stays, and the same call goes on.
    """
    with ExitStack() as stack:
        if config.run.engine == "ray":
            from pipeline.on_ray.session import ray_session

            models: list[Replicas] = [config.generate, config.reward, config.policy, config.reference or config.policy]
            stack.enter_context(ray_session(config.run, models))
        run = prepare(config)
        yield f"{run.prompts.num_kept:,} prompts, {run.held_out.num_kept:,} held out\n"
        policy, subsets = config.policy, list[str]()
        first = _measured(run, policy, run.url("measured-0"))
        body = {"evaluation": compare_policies(first[0], first[0]), "measuring": first[1]}
        reports = [_report(run, 0, body, run.url("measured-0"))]
        for number in range(1, config.rounds + 1):
            found, trained = _play_round(run, number, policy, subsets)
            subsets += found.subsets
            policy = policy if trained is None else trained.policy
            reports.append(_close(run, found, trained, first[0]))
            yield f"{render_rounds(reports)}\n"
        yield f"policy: {policy.model}"


def prepare(config: SelfPlayConfig) -> SelfPlay:
    """Check models, training, prompts and places, claim the path, and write the prompts.

    Raises:
        AlignpotError: what is wrong, before a model is loaded.
    """
    config, fingerprints = _pinned(config)
    if config.train is not None:
        check_training(training_job(config, config.policy, ()))
    place = Place.open(config.path, config.storage)
    if find_plan(place, KIND) is None:  # one that ended may lie where nothing can be written any more
        check_writable(place)
    source = Place.open(config.prompts.path, config.storage)
    source.check_readable()
    with storage_errors(config.prompts.path):
        benchmarks = _benchmarks(config)
        seeds = read_prompts(source.fs, source.root, config.prompts, benchmarks)
    train, held_out, near = split_held_out(seeds.table, config.evaluate, config.prompts.seed)
    fingerprint = {
        "alignpot": MINOR_VERSION,
        **config.fingerprint(),
        "prompts": config.prompts.fingerprint()
        | {"files": {file.path: f"{file.size}:{file.digest}" for file in seeds.files}},
        **fingerprints,
        "benchmarks": None if benchmarks is None else digest(benchmarks.grams.tobytes()),
    }
    Run.claim(place, Plan(kind=KIND, fingerprint=fingerprint, config=config.model_dump(mode="json")))
    left_out = [near, seeds.table.filter(pc.equal(seeds.table[schema.STATUS], schema.DROPPED))]
    for reason, count in Counter(pa.concat_tables(left_out)[schema.DROP_REASON].to_pylist()).most_common():
        _log.warning("%d prompts left out: %s", count, reason)
    url = config.path.rstrip("/")
    return SelfPlay(
        config=config,
        prompts=write_prompts(config, pa.concat_tables([train, *left_out]), f"{url}/{PROMPTS}", {"side": "train"}),
        held_out=write_prompts(config, held_out, f"{url}/held_out", {"side": "held out"}),
        fingerprints=fingerprints,
        benchmarks=benchmarks,
    )


def _pinned(config: SelfPlayConfig) -> tuple[SelfPlayConfig, dict[str, Any]]:
    """The config with models and paths as workers read them, and what identifies the models, by role."""
    models: dict[str, TorchModel] = {"policy": config.policy, "reward": config.reward}
    in_training = config.train is not None and config.train.method == "dpo"
    if config.needs_reference or in_training:
        models["reference"] = config.reference or config.policy
    check_models(models, config.tokens)
    fingerprints = {role: model_fingerprint(model) for role, model in models.items()}
    pins: dict[str, Any] = {role: pinned(model, fingerprints[role]) for role, model in models.items()}
    path = config.path if "://" in config.path else str(Path(config.path).expanduser().resolve())
    return config.model_copy(update={**pins, "path": path}), fingerprints


def _benchmarks(config: SelfPlayConfig) -> Contamination | None:
    if not config.prompts.decontaminate:
        return None
    places = [Place.open(url, config.storage) for url in config.prompts.decontaminate]
    texts = [text for place in places for text in read_benchmark(place.fs, place.root)]
    return Contamination.of_texts(texts, config.prompts.ngram)


def _play_round(run: SelfPlay, number: int, policy: TorchModel, before: list[str]) -> tuple[Round, Trained | None]:
    """Expand, evolve, expand, train."""
    config, found = run.config, Round(number=number)
    models, place = run.models(policy), run.url(f"round-{number}")
    found.expansions["base"] = Counts()
    expand(models, run.prompts, f"{place}/base", found.expansions["base"])
    if not _take(run, found, f"{place}/base"):
        raise DataError(
            f"round {number}: {run.prompts.num_kept} prompts gave {found.expansions['base'].pairs} pairs, too few to "
            "select from. Give more prompts, a larger generate.num_responses, or a larger select.fraction."
        )
    if config.evolve is not None:
        counts = found.expansions["evolved"] = Counts()
        url = f"{place}/evolved"
        prompts = evolve_prompts(models, _known(run, number), number, f"{place}/base/subset", url, counts)
        if prompts.num_kept:
            expand(models, prompts, url, counts)
            _take(run, found, url)
    if config.train is None:
        return found, None
    start = config.policy if config.train.start_from == "base" else policy
    subsets = found.subsets if config.train.data == "round" else [*before, *found.subsets]
    _log.info("round %d: training on %d subsets", number, len(subsets))
    return found, train_policy(models, start, subsets, place, number)


def _known(run: SelfPlay, number: int) -> Known:
    """Every prompt of the run so far."""
    earlier = [run.url(f"round-{i}", "evolved", PROMPTS) for i in range(1, number)]
    urls = [run.url(PROMPTS), run.url("held_out"), *earlier]
    datasets = [Dataset.open(Place.open(url, run.config.storage), PROMPTS) for url in urls]
    return Known(prompts=tuple(dataset.table() for dataset in datasets), benchmarks=run.benchmarks)


def _take(run: SelfPlay, found: Round, url: str) -> bool:
    """Count the subset at `url` among those to train on; False if there is none."""
    if Dataset.find(Place.open(f"{url}/subset", run.config.storage), SUBSET) is None:
        return False
    found.subsets.append(f"{url}/subset")
    found.strategies.update(prompts_of(f"{url}/subset", run.config.storage)[schema.STRATEGY].to_pylist())
    return True


def _measured(run: SelfPlay, policy: TorchModel, url: str) -> tuple[pa.Table, dict[str, Any]]:
    table, counts = measure(run.models(policy), run.held_out, url)
    return table, as_plain(counts)


def _close(run: SelfPlay, found: Round, trained: Trained | None, first: pa.Table) -> dict[str, Any]:
    """Measure the new policy and write the round's report, or find it."""
    place = run.url(f"round-{found.number}") if trained is None else trained.url
    stored = _stored_report(run, place)
    if stored is not None:
        return stored
    body: dict[str, Any] = {
        "expansions": {name: as_plain(counts) for name, counts in found.expansions.items()},
        "strategies": dict(sorted(found.strategies.items())),
    }
    if trained is not None:
        answers, measuring = _measured(run, trained.policy, f"{trained.url}/measured")
        config = score_config(run.models(trained.policy), run.url(f"round-{found.number}", "base"))
        body |= {
            "training": {"summary": dict(trained.summary), "seconds": trained.seconds, "policy": trained.policy.model},
            "evaluation": compare_policies(answers, first),
            "measuring": measuring,
            "margins": margins_after(config, trained.policy, found.subsets[0], f"{trained.url}/after"),
        }
    return _report(run, found.number, body, place)


def _report(run: SelfPlay, number: int, body: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The report of a round as it is stored: the first one wins, whose seconds are those of the work itself."""
    report = {"round": number, **body}
    if create(Place.open(place, run.config.storage) / REPORT_FILE, sealed(report)):
        return report
    return _stored_report(run, place) or report


def _stored_report(run: SelfPlay, place: str) -> dict[str, Any] | None:
    return read_sealed(Place.open(place, run.config.storage) / REPORT_FILE)
