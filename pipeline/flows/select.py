"""Select subsets of a scored dataset: survey, thresholds, then tasks that write.

    check ids -> what metrics take from the set -> thresholds -> report -> files -> _SUCCESS.json

Narrow columns are read until the thresholds are known, and the text only after that. Every step is a task over parts of
the dataset, run by threads of this machine or on a Ray cluster with the same results and bytes. Run again, the same
config finds its subsets and does nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Config, Output, Select, resolved
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.duplicates import find_repeats, id_hashes
from pipeline.data.files import REPORT_FILE, file_shards, finish_files, with_layout
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run, check_claim
from pipeline.data.sealed import differences, fingerprint_digest, read_sealed, sealed
from pipeline.errors import ConfigError, FingerprintError, SourceError
from pipeline.flows.select_engine import passes_for
from pipeline.flows.write_subset import FileTask, files_of
from pipeline.metrics.ids import HashArray
from pipeline.selection.former import apply_former, former_rule
from pipeline.selection.passes import Passes
from pipeline.selection.report import PartsReport, summarise_parts
from pipeline.selection.selection import Selection
from pipeline.selection.source import Part, Positions, parts_of
from pipeline.selection.streams import check_group_type
from pipeline.selection.top_k import Query, num_selected, select_many
from pipeline.shown import shown_path

_PARTS_PER_FILE: Final = 4
_SCORING: Final = ("policy", "reference", "reward", "tokens")
_SLIM: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
_INTERNAL: Final = (schema.CONTENT_DIGEST, *(field.name for field in schema.OUTCOME_FIELDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRun:
    """A checked selection: where it reads and writes, and what identifies it. former: the selection it takes over."""

    config: Config
    output: Output
    select: Select
    place: Place
    fingerprint: Mapping[str, Any]
    former: Mapping[str, Any] | None = None

    @property
    def query(self) -> Query:
        """What is to be found."""
        return Query(objective=self.config.objective, metric=self.config.metric, rule=self.select)

    def where(self) -> str:
        """Where the subset lies and how to load it."""
        path = shown_path(self.output.path.rstrip("/"))
        lines = [f"subset: {path}"]
        if "hf" in self.output.formats:
            lines.append(f'  datasets.load_from_disk("{path}/hf")["train"]')
        if "parquet" in self.output.formats:
            lines.append(f'  datasets.load_dataset("parquet", data_files="{path}/parquet/*.parquet")["train"]')
        return "\n".join(lines)


def prepare_select(config: Config, plan: Plan | None = None) -> list[SelectRun]:
    """Check the outputs and what may be there already; one run, or one for each variant of a sweep.

    plan: of the scored dataset, where it is not complete yet; left out, the scored dataset must be complete.

    Raises:
        AlignpotError: what is wrong, before a row is read.
    """
    scored = plan.fingerprint if plan is not None else open_scored(config).manifest.fingerprint
    return [_prepare(variant, scored, plan) for variant in config.variants()]


def _prepare(config: Config, scored: Mapping[str, Any], plan: Plan | None) -> SelectRun:
    if config.select is None or config.output is None:
        raise ConfigError("select needs a select section (fraction or k) and an output section (path); add them.")
    place = Place.open(config.output.path, config.storage)
    if Dataset.find(place, SUBSET) is None:
        check_writable(place)
    former = None if config.select.stats_from is None else _former(config, config.select.stats_from, scored)
    rule = config.select
    if former is not None:
        rule = former_rule(former, Query(objective=config.objective, metric=config.metric, rule=rule))
    fingerprint = {
        "scored": fingerprint_digest(scored),
        "objective": config.objective.model_dump(mode="json"),
        "metric": config.metric.model_dump(mode="json"),
        "select": rule.model_dump(mode="json", exclude={"engine", "stats_from"}),
        "stats_from": None if former is None else fingerprint_digest(former),
        "slim": config.output.slim,
        "formats": sorted(config.output.formats),
    }
    if plan is not None and rule.group_by is not None:
        remedy = "Name it in source.passthrough."
        schema.require_columns(plan.schema, [rule.group_by], where="select.group_by", remedy=remedy)
        check_group_type(rule.group_by, plan.schema.field(rule.group_by).type)
    if plan is not None and former is None:
        num_selected(rule, sum(shard["num_rows"] for shard in plan.shards))
    check_claim(place, SUBSET, fingerprint)
    return SelectRun(
        config=config, output=config.output, select=rule, place=place, fingerprint=fingerprint, former=former
    )


def select_subsets(runs: Sequence[SelectRun]) -> list[dict[str, Any]]:
    """Write the subsets, where they are not there already, and return their reports.

    Raises:
        AlignpotError: the scored dataset does not allow a selection, or is damaged.
    """
    pending = [run for run in runs if Dataset.find(run.place, SUBSET) is None]
    if pending:
        config = pending[0].config
        dataset = open_scored(config)
        with passes_for(config, pending[0].config.select) as passes:
            duplicates = find_positions(passes, dataset)
            selections = _selections(passes, dataset, pending, duplicates)
            has_tools = any(passes.run(_ToolsTask(), parts_of(dataset, duplicates, "keep", passes.num_parts)))
            for run, selection in zip(pending, selections, strict=True):
                _write(passes, dataset, run, selection, has_tools=has_tools)
    return [_report(run.place) for run in runs]


def load_reports(config: Config) -> list[dict[str, Any]]:
    """The reports of the subsets at `output.path`.

    Raises:
        SourceError: there is no complete subset.
    """
    if config.output is None:
        raise ConfigError("report needs an output section with the path of the subset; the config has none.")
    reports = []
    for variant in config.variants():
        path = variant.output.path if variant.output is not None else config.output.path
        reports.append(_report(Dataset.open(Place.open(path, config.storage), SUBSET).place))
    return reports


@dataclass(frozen=True, slots=True)
class _HashTask:
    """Hashes of the ids of one part; picklable."""

    def __call__(self, part: Part) -> HashArray:
        hashes = [id_hashes(table) for table in part.source.tables([schema.ID])]
        return np.concatenate([np.zeros(0, np.uint64), *hashes])


def find_positions(passes: Passes, dataset: Dataset) -> Positions:
    """Positions of the rows that repeat the id and content of another one.

    Raises:
        SourceError: rows share an id but not their content.
    """
    parts = [Part(source=piece, first_row=first) for first, piece in dataset.split(passes.num_parts)]
    return find_repeats(dataset, np.concatenate([np.zeros(0, np.uint64), *passes.run(_HashTask(), parts)]))


def _selections(passes: Passes, dataset: Dataset, runs: Sequence[SelectRun], duplicates: Positions) -> list[Selection]:
    """The selections of all runs; those that are searched for share their passes."""
    searched = [run for run in runs if run.former is None]
    found = iter(select_many(dataset, [run.query for run in searched], duplicates, passes, verify=False))
    return [
        next(found)
        if run.former is None
        else apply_former(passes, _parts(dataset, duplicates, run.select, passes.num_parts), run.former, run.query)
        for run in runs
    ]


def _parts(dataset: Dataset, duplicates: Positions, rule: Select, num_parts: int) -> list[Part]:
    return parts_of(dataset, duplicates, rule.labels, num_parts)


@dataclass(frozen=True, slots=True)
class _ToolsTask:
    """Whether a pair of one part has tools; picklable."""

    def __call__(self, part: Part) -> bool:
        tables = part.source.tables([schema.TOOLS])
        return any(table.column(schema.TOOLS).null_count < table.num_rows for table in tables)


def _write(passes: Passes, dataset: Dataset, run: SelectRun, selection: Selection, *, has_tools: bool) -> None:
    # A file reads each of its parts from the start: with few parts a file, most of that would be rows of others.
    num_files = -(-selection.k // run.output.rows_per_file)
    num_parts = max(passes.num_parts, _PARTS_PER_FILE * num_files)
    parts = _parts(dataset, selection.duplicates, run.select, num_parts)
    found: PartsReport = summarise_parts(passes, parts, selection)
    columns = _columns(dataset.schema, slim=run.output.slim, has_tools=has_tools)
    plan = Plan(
        kind=SUBSET,
        fingerprint=run.fingerprint,
        config=resolved(run.config),
        schema=_subset_schema(dataset.schema, columns, slim=run.output.slim),
        shards=file_shards(selection.k, run.output.rows_per_file),
        formats=run.output.formats,
    )
    writing = Run.claim(run.place, with_layout(plan))
    task = FileTask(run=writing, selection=selection, columns=tuple(columns))
    files = [file for files in passes.map(task, files_of(writing.plan, parts, found.num_kept)) for file in files]
    scored_by = _scored_by(dataset.manifest.fingerprint)
    extra = {"selection": found.report["selection"], "scored_by": scored_by}
    finish_files(writing, files, {REPORT_FILE: sealed(found.report)}, extra)


def _scored_by(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the scores of a row, whatever data it is of."""
    return {name: fingerprint.get(name) for name in _SCORING}


def _former(config: Config, path: str, scored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The selection in a subset's manifest, which must be of scores like those of `scored`."""
    manifest = read_sealed(Place.open(path, config.storage))
    path = shown_path(path)
    if manifest is None:
        raise SourceError(f"select.stats_from: {path} is not there. Give the _SUCCESS.json of a subset.")
    extra = manifest.get("extra")
    selection = extra.get("selection") if isinstance(extra, dict) else None
    if not isinstance(extra, dict) or not isinstance(selection, dict):
        raise SourceError(f"select.stats_from: {path} holds no selection. Give the _SUCCESS.json of a subset.")
    found = list(differences(extra.get("scored_by") or {}, _scored_by(scored)))
    if found:
        raise FingerprintError(
            f"select.stats_from: {path} was made from scores of other models or settings; what differs: "
            f"{', '.join(field for field, _, _ in found)}. Thresholds hold for one set of models: score with the same."
        )
    return selection


def open_scored(config: Config) -> Dataset:
    """The complete dataset at `scored`.

    Raises:
        SourceError: there is none.
    """
    return Dataset.open(Place.open(config.scored, config.storage))


def _report(place: Place) -> dict[str, Any]:
    path = place / REPORT_FILE
    report = read_sealed(path)
    if report is None:
        raise SourceError(f"{path} is missing from a complete subset. Select again to another path.")
    return report


def _columns(scored: pa.Schema, *, slim: bool, has_tools: bool) -> list[str]:
    """Columns of the scored dataset that the subset keeps; tools only where a pair has some."""
    names = list(_SLIM) if slim else [name for name in scored.names if name not in _INTERNAL]
    names = [name for name in names if name != schema.TOOLS]
    return [*names, schema.TOOLS] if has_tools else names


def _subset_schema(scored: pa.Schema, columns: list[str], *, slim: bool) -> pa.Schema:
    kept = [scored.field(name) for name in columns]
    return pa.schema(kept if slim else [*kept, *schema.SUBSET_FIELDS])
