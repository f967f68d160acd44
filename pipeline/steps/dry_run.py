"""What `run` and `score` will take: everything is checked, the first rows are read and tokenised, and no model loads.

    first rows -> share that is kept, tokens of each model -> times the rows that are left -> GPU-hours and bytes

A model reads P tokens in 2 x parameters x P FLOP, at `estimate.scoring_mfu` of `estimate.gpu_flops`. Loading models and
idle GPUs are left out, so the GPU-hours are right within a factor of two or so.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import Config, reward_key
from pipeline.data.commit import no_new_folders
from pipeline.data.place import Place
from pipeline.data.run import Run, check_claim, find_plan
from pipeline.drops import share_of_faults
from pipeline.errors import TooManyDroppedError
from pipeline.models.packing import BLOCK_ROWS, num_step_tokens, sharing_order
from pipeline.rewards.classifier import completions
from pipeline.selection.text import aligned
from pipeline.steps.grouped import as_planned
from pipeline.steps.lazy import outlook
from pipeline.steps.placed import layout_told, models_of
from pipeline.steps.refusals import words_in
from pipeline.steps.reward_stage import dialogues_as_ids
from pipeline.steps.rows import kept_rows, without_transient
from pipeline.steps.score import scoring_step
from pipeline.steps.score_stages import pair_groups, score_stages
from pipeline.steps.select import prepare_select
from pipeline.steps.shards import rows_in
from pipeline.steps.step import Step, first_rows, pending_shards, plan_of

SAMPLE_ROWS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """What one model reads; `parameters` and `gpu_hours` are None where its weights are not on this machine."""

    role: str
    parameters: int | None
    tokens: int
    gpu_hours: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """The estimate for the rows that are left.

    num_rows, num_left: rows of the source, and those that are not scored yet. num_sampled: first rows of these that
    were read. dropped: of them, by stage and reason. template_words: see `refusals`. scored_bytes, subset_bytes: of the
    finished datasets. layout: where the models go, in words. lazy: what score.lazy will save, in words.
    """

    num_rows: int
    num_left: int
    num_sampled: int
    dropped: dict[str, int]
    template_words: str
    models: tuple[ModelCost, ...]
    scored_bytes: int
    subset_bytes: int | None
    layout: str = ""
    lazy: str = ""


def dry_run(config: Config, *, select: bool) -> Iterator[str]:
    """The estimate as text. select: the subset belongs to the command.

    Raises an AlignpotError if anything is wrong with source, models, storage or output, and a TooManyDroppedError if
    more of the first rows are dropped than `run.max_dropped` allows.
    """
    cost = estimate(config, select=select)
    yield render(cost, config)
    share = share_of_faults(cost.dropped, cost.num_sampled)
    if share > config.run.max_dropped:
        raise TooManyDroppedError(
            f"{share:.0%} of the first {cost.num_sampled} rows are dropped; run.max_dropped allows a share of "
            f"{config.run.max_dropped}. Mend the source, or raise run.max_dropped."
        )


def estimate(config: Config, *, select: bool) -> RunCost:
    """Check everything, then estimate from the first rows. Leaves nothing behind. Raises as `dry_run`."""
    urls = [config.scored, *(variant.output.path for variant in config.variants() if select and variant.output)]
    with no_new_folders([Place.open(url, config.storage) for url in urls]):
        return _estimate(config, select=select)


def _estimate(config: Config, *, select: bool) -> RunCost:
    config, step = scoring_step(config)
    plan, place = plan_of(step), Place.open(config.scored, config.storage)
    check_claim(place, step.kind, plan.fingerprint)
    run = Run(place, find_plan(place, step.kind) or plan)
    step = as_planned(step, run)
    if select:
        prepare_select(config, run.plan)
    pending = pending_shards(step, run)
    table = _first_rows(step, run, pending)
    num_left = int(rows_in(run.plan.shards)[pending].sum())
    num_rows = sum(shard["num_rows"] for shard in run.plan.shards)
    scored_bytes = _parquet_bytes(without_transient(table)) / max(1, table.num_rows)
    kept_share = kept_rows(table).size / max(1, table.num_rows)
    return RunCost(
        num_rows=num_rows,
        num_left=num_left,
        num_sampled=table.num_rows,
        dropped=_drops(table),
        template_words=words_in(config, table),
        models=tuple(_model_costs(config, table, num_left)),
        scored_bytes=round(num_rows * scored_bytes),
        subset_bytes=_subset_bytes(config, table, num_rows * kept_share) if select else None,
        layout=_layout(config) if config.torch_models() else "",
        lazy=outlook(config, run) if config.score.lazy else "",
    )


def _layout(config: Config) -> str:
    """Of the models that work at the same time: with score.lazy the rewards come before."""
    stages = [stage for stage in score_stages(config) if not (config.score.lazy and stage.name == "reward")]
    return layout_told(models_of(stages), config.run)


def render(cost: RunCost, config: Config) -> str:
    """The estimate as text, with what was assumed."""
    rows = [
        ("rows", f"{cost.num_rows:,}"),
        ("  not scored yet", f"{cost.num_left:,}"),
        ("  read now", f"{cost.num_sampled:,}"),
        *((f"    dropped: {reason}", f"{count:,}") for reason, count in cost.dropped.items()),
        ("scored dataset, MB", f"{cost.scored_bytes / 1e6:,.1f}"),
    ]
    if cost.subset_bytes is not None:
        rows.append(("subset, MB", f"{cost.subset_bytes / 1e6:,.1f}"))
    texts = [aligned(rows)]
    if cost.template_words:
        texts.append(f'The chat template refuses rows: "{cost.template_words}"')
    if cost.models:
        hours = [model.gpu_hours for model in cost.models if model.gpu_hours is not None]
        lines = [("model", "parameters", "tokens", "GPU-hours")]
        lines += [
            (model.role, _number(model.parameters), f"{model.tokens:,}", _hours(model.gpu_hours))
            for model in cost.models
        ]
        lines.append(("in all", "", f"{sum(model.tokens for model in cost.models):,}", _hours(sum(hours))))
        given = config.estimate
        texts += [
            aligned(lines),
            f"Assumed: {given.gpu_flops:.3g} FLOP/s of a GPU, {given.scoring_mfu:.0%} of it used. Set them under "
            "estimate.",
        ]
    texts += [text for text in (cost.layout, cost.lazy) if text]
    return "\n\n".join([*texts, "Nothing was scored or written."])


def _first_rows(step: Step, run: Run, pending: NDArray[np.int64]) -> pa.Table:
    """The first rows that are not scored yet, tokenised."""
    tables = first_rows(step, run, pending, SAMPLE_ROWS) or [step.schema.empty_table()]
    table = pa.concat_tables(tables).slice(0, SAMPLE_ROWS).combine_chunks()
    tokenise = [stage for stage in step.stages if stage.name == "tokenise"]
    return tokenise[0].build()(table) if tokenise else table


def _drops(table: pa.Table) -> dict[str, int]:
    names = pc.binary_join_element_wise(table[schema.DROP_STAGE], table[schema.DROP_REASON], " ").drop_null()
    return {entry["values"]: entry["counts"] for entry in names.value_counts().to_pylist()}


def _model_costs(config: Config, table: pa.Table, num_left: int) -> Iterator[ModelCost]:
    rows, given = kept_rows(table), config.estimate
    members = {reward_key(name): name for name in config.members}
    for role, model in config.torch_models().items():
        from pipeline.models.fingerprints import num_parameters

        member = members.get(role)
        groups = pair_groups(table, rows) if member is None else completions(dialogues_as_ids(table, rows, member))
        ordered = [groups[i] for i in sharing_order(groups)]
        tokens = num_step_tokens(ordered, BLOCK_ROWS) * num_left / max(1, table.num_rows)
        parameters, hours = num_parameters(model), None
        if parameters is not None:
            hours = 2.0 * parameters * tokens / (given.gpu_flops * given.scoring_mfu) / 3600.0
        yield ModelCost(role=role, parameters=parameters, tokens=round(tokens), gpu_hours=hours)


def _subset_bytes(config: Config, table: pa.Table, num_kept: float) -> int:
    kept = without_transient(table.take(pa.array(kept_rows(table))))
    of_format = {"hf": kept.nbytes, "parquet": _parquet_bytes(kept)}
    total = 0.0
    for variant in config.variants():
        rule, output = variant.select, variant.output
        if rule is None or output is None:
            continue
        num_selected = rule.k if rule.k is not None else float(Fraction(str(rule.fraction or 1)) * Fraction(num_kept))
        total += sum(of_format[name] for name in output.formats) / max(1, kept.num_rows) * num_selected
    return round(total)


def _parquet_bytes(table: pa.Table) -> int:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.tell()


def _number(value: Any) -> str:
    return "not on this machine" if value is None else f"{value:,}"


def _hours(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"
