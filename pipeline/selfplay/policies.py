"""A policy's way through storage: trained once, measured on held-out prompts, opened again by later rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Config, SelfPlayConfig, TorchModel
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import find_manifest
from pipeline.data.place import Place
from pipeline.data.run import MINOR_VERSION, Plan, Run
from pipeline.data.sealed import fingerprint_digest
from pipeline.data.verify import verify
from pipeline.errors import IntegrityError, StorageError
from pipeline.metrics.margins import EXPLICIT_COLUMNS, explicit_margin, implicit_margin, objective_columns
from pipeline.models.fingerprints import model_fingerprint
from pipeline.on_ray.session import cluster_address
from pipeline.selfplay.evolution import open_subset
from pipeline.selfplay.expansion import CANDIDATES, Counts, Models, generate_answers
from pipeline.selfplay.plan import evaluation
from pipeline.steps.score import prepare_score, score
from pipeline.training.hook import train
from pipeline.training.job import TrainJob

TRAINING = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training made; `url` is where its record lies, and what is measured of the policy."""

    url: str
    policy: TorchModel
    digest: str
    summary: Mapping[str, Any]
    seconds: float


def train_policy(models: Models, start: TorchModel, subsets: Sequence[str], place: str, number: int) -> Trained:
    """Train on the subsets, or find what was trained with these settings; other settings are another training.

    Raises:
        IntegrityError: the model that was trained is not the one that is there.
        AlignpotError: the training failed.
    """
    config = models.config
    job = training_job(config, start, subsets)
    fingerprint = _fingerprint(config, job, subsets)
    name = fingerprint_digest(fingerprint)[:12]
    url, output = f"{place}/training-{name}", config.policies / f"round-{number}-{name}"
    plan = Plan(kind=TRAINING, fingerprint=fingerprint, config=config.model_dump(mode="json"))
    run = Run.claim(Place.open(url, config.storage), plan)
    done = find_manifest(run.place, TRAINING)
    if done is not None:
        return _found(config, done.extra, url, output)
    for subset in subsets:
        verify(Place.open(subset, config.storage))
    result = _run(replace(job, output=output), config)
    seconds = float(result.summary["seconds_in_all"])
    facts = {"digest": result.digest, "policy": str(result.policy), "summary": result.summary, "seconds": seconds}
    run.publish(run.manifest(extra=facts))
    policy = _trained_model(config, output)
    return Trained(url=url, policy=policy, digest=result.digest, summary=result.summary, seconds=seconds)


def training_job(config: SelfPlayConfig, start: TorchModel, subsets: Sequence[str]) -> TrainJob:
    """A training of this run; its output is named after what decides it."""
    assert config.train is not None  # noqa: S101
    return TrainJob(
        datasets=tuple(f"{subset}/hf" for subset in subsets),
        policy=start,
        reference=(config.reference or config.policy) if config.train.method == "dpo" else None,
        output=config.policies,
        settings=config.train,
        objective=config.objective,
        tokens=config.tokens,
        storage=config.storage,
    )


def _run(job: TrainJob, config: SelfPlayConfig) -> Any:
    """Train here, or on a node of the cluster that has the GPUs."""
    if config.run.engine == "plain" or cluster_address(config.run) is None:
        return train(job)
    from pipeline.on_ray.remote import call_on_cluster

    return call_on_cluster(train, job, num_gpus=job.settings.num_gpus, num_cpus=job.settings.num_threads)


def _fingerprint(config: SelfPlayConfig, job: TrainJob, subsets: Sequence[str]) -> dict[str, Any]:
    return {
        "alignpot": MINOR_VERSION,
        "start": model_fingerprint(job.policy),
        "reference": None if job.reference is None else model_fingerprint(job.reference),
        "subsets": [open_subset(subset, config.storage).content for subset in subsets],
        "train": job.settings.fingerprint(),
        "objective": config.objective.fingerprint(),
        "tokens": config.tokens.fingerprint(),
    }


def _found(config: SelfPlayConfig, stored: Mapping[str, Any], url: str, output: Path) -> Trained:
    if not output.is_dir():
        raise StorageError(
            f"{output} is gone, which a complete training has left. Restore it; or delete {url}, whose record says "
            "that it is there, and run again."
        )
    policy = _trained_model(config, output)
    digest = model_fingerprint(policy)["weights"]
    if digest != stored["digest"]:
        raise IntegrityError(f"the weights in {output} are not those that were trained. Restore them.")
    return Trained(url=url, policy=policy, digest=digest, summary=stored["summary"], seconds=stored["seconds"])


def _trained_model(config: SelfPlayConfig, output: Path) -> TorchModel:
    return config.policy.model_copy(
        update={"model": str(output), "revision": "main", "adapter": None, "adapter_revision": "main"}
    )


def measure(models: Models, held_out: Dataset, url: str) -> tuple[pa.Table, Counts]:
    """The policy's answers to the held-out prompts with their rewards, and what it took to get them."""
    config = models.config
    measuring = config.model_copy(update={"generate": evaluation(config)})
    counts = Counts()
    answered = generate_answers(replace(models, config=measuring), held_out, url, counts)
    candidates = Dataset.open(Place.open(f"{url}/{CANDIDATES}", config.storage), CANDIDATES)
    return _every_prompt(candidates, answered), counts


def _every_prompt(candidates: Dataset, answered: Dataset) -> pa.Table:
    """Id, rewards, token counts and finish reasons for each prompt, those without any included."""
    columns = [schema.ID, schema.RESPONSE_TOKENS, schema.FINISH_REASONS, schema.RESPONSE_REWARDS]
    every = candidates.table([schema.ID, schema.STATUS], kept_only=False)
    unanswered = every.filter(pc.equal(every[schema.STATUS], schema.DROPPED)).select([schema.ID])
    return pa.concat_tables([answered.table(columns, kept_only=False), unanswered], promote_options="default")


def margins_after(base: Config, policy: TorchModel, subset: str, url: str) -> dict[str, float]:
    """Mean margins of a subset's pairs: explicit, and implicit under the policy that scored them and under another.

    The other policy's scores go to `url`. Implicit margins are signed.
    """
    sections = {
        "source": None,
        "policy": policy.model_dump(),
        "reference": None if base.reference is None else {"backend": "columns"},
        "scored": url,
        "output": None,
        "select": None,
    }
    after = Config.model_validate(base.model_dump(exclude_unset=True) | sections)
    pairs = open_subset(subset, base.storage)
    score(prepare_score(after, pairs))
    columns = [*objective_columns(base.objective), *EXPLICIT_COLUMNS["signed"]]
    scored = Dataset.open(Place.open(url, base.storage)).table(columns)
    before = pairs.table(columns)
    return {
        "num_pairs": scored.num_rows,
        "explicit": float(explicit_margin(before).mean()),
        "implicit_before": float(implicit_margin(before, base.objective).mean()),
        "implicit_after": float(implicit_margin(scored, base.objective).mean()),
    }


def as_plain(counts: Counts) -> dict[str, Any]:
    """Counts as JSON values."""
    return asdict(counts)
