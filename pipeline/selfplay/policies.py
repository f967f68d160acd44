"""A policy: trained once, measured on held-out prompts, found again by later runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Config, SelfPlayConfig, TorchModel
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET, find_manifest
from pipeline.data.place import Place
from pipeline.data.run import MINOR_VERSION, Plan, Run
from pipeline.data.sealed import fingerprint_digest
from pipeline.data.verify import verify
from pipeline.errors import IntegrityError, StorageError
from pipeline.metrics.columns import float_column
from pipeline.metrics.margins import EXPLICIT_COLUMNS, explicit_margin, implicit_margin, objective_columns
from pipeline.models.fingerprints import model_fingerprint
from pipeline.selfplay.candidates import evaluation
from pipeline.selfplay.expansion import CANDIDATES, Counts, SelfPlay, generate_answers
from pipeline.steps.score import prepare_score, score
from pipeline.training.hook import train
from pipeline.training.job import TrainJob

TRAINING: Final = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training made. Its record, and what is measured of the policy, lie at `url`."""

    url: str
    policy: TorchModel
    summary: Mapping[str, Any]


def train_policy(run: SelfPlay, start: TorchModel, subsets: Sequence[str], place: str, number: int) -> Trained:
    """Train on the subsets, or find what was trained with these settings; other settings are another training.

    Raises:
        IntegrityError: the model that was trained is not the one that is there.
        AlignpotError: the training failed.
    """
    config = run.config
    job = training_job(config, start, subsets)
    fingerprint = {
        "alignpot": MINOR_VERSION,
        "start": model_fingerprint(job.policy),
        "reference": None if job.reference is None else model_fingerprint(job.reference),
        "subsets": [run.dataset(subset).content for subset in subsets],
        "train": job.settings.fingerprint(),
        "objective": config.objective.fingerprint(),
        "tokens": config.tokens.fingerprint(),
    }
    name = fingerprint_digest(fingerprint)[:12]
    url, output = f"{place}/training-{name}", config.policies / f"round-{number}-{name}"
    own = {"model": str(output), "revision": "main", "adapter": None, "adapter_revision": "main"}
    policy = config.policy.model_copy(update=own)
    plan = Plan(kind=TRAINING, fingerprint=fingerprint, config=config.model_dump(mode="json"))
    record = Run.claim(Place.open(url, config.storage), plan)
    done = find_manifest(record.place, TRAINING)
    if done is None:
        for subset in subsets:
            verify(Place.open(subset, config.storage))
        summary = _train(job.model_copy(update={"output": output}), config)
        digest = model_fingerprint(policy)["weights"]
        record.publish(record.manifest(extra={"digest": digest, "policy": str(output), "summary": summary}))
        return Trained(url=url, policy=policy, summary=summary)
    if not output.is_dir():
        raise StorageError(
            f"{output} is gone, though its training is complete. Restore it; or delete {url}, the record of the "
            "training, and run again."
        )
    if model_fingerprint(policy)["weights"] != done.extra["digest"]:
        raise IntegrityError(f"the weights in {output} are not those that were trained. Restore them.")
    return Trained(url=url, policy=policy, summary=done.extra["summary"])


def training_job(config: SelfPlayConfig, start: TorchModel, subsets: Sequence[str]) -> TrainJob:
    """A training of this run. Its output is not known yet: it is named after what decides it."""
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


def _train(job: TrainJob, config: SelfPlayConfig) -> dict[str, Any]:
    """Train here, or on a node of the cluster that has the GPUs."""
    if config.run.engine == "plain" or config.run.cluster is None:
        return train(job)
    from pipeline.on_ray.tasks import call_on_cluster

    return call_on_cluster(train, job, num_gpus=job.settings.num_gpus, num_cpus=job.settings.num_threads)


def measure(run: SelfPlay, held_out: Dataset, url: str) -> tuple[pa.Table, Counts]:
    """The policy's answers to the held-out prompts with their rewards, and what it took to get them.

    The table has id, rewards, token counts and finish reasons of every prompt, including those without answers.
    """
    config = run.config
    measuring = config.model_copy(update={"generate": evaluation(config)})
    counts = Counts()
    answered = generate_answers(replace(run, config=measuring), held_out, url, counts)
    every = run.dataset(f"{url}/{CANDIDATES}", CANDIDATES).table([schema.ID, schema.STATUS], kept_only=False)
    unanswered = every.filter(pc.equal(every[schema.STATUS], schema.DROPPED)).select([schema.ID])
    rewards = map(schema.response_rewards, config.reward_names)
    columns = [schema.ID, schema.RESPONSE_TOKENS, schema.FINISH_REASONS, *rewards]
    answers = answered.table(columns, kept_only=False)
    return pa.concat_tables([answers, unanswered], promote_options="default"), counts


def margins_after(base: Config, policy: TorchModel, subset: str, url: str) -> dict[str, float]:
    """Mean margins of a subset's training pairs: explicit (of several rewards, as it was selected by), and implicit
    under two policies.

    One is the policy that scored them. The other one's scores go to `url`. Implicit margins are signed.
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
    pairs = Dataset.open(Place.open(subset, base.storage), SUBSET).of_split(schema.TRAIN)
    score(*prepare_score(after, pairs))
    columns = objective_columns(base.objective)
    scored, before = Dataset.open(Place.open(url, base.storage)).table(columns), pairs.table(columns)
    explicit = explicit_margin(pairs.table(EXPLICIT_COLUMNS["signed"])) if base.reward is not None else None
    if explicit is None:
        explicit = float_column(pairs.table([schema.MARGIN_EXPLICIT]), schema.MARGIN_EXPLICIT)
    return {
        "num_pairs": scored.num_rows,
        "explicit": float(explicit.mean()),
        "implicit_before": float(implicit_margin(before, base.objective).mean()),
        "implicit_after": float(implicit_margin(scored, base.objective).mean()),
    }
