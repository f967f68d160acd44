"""Select subsets of a scored dataset: survey, thresholds, then tasks that write.

    check ids -> what metrics take from the set -> thresholds -> report -> files -> _SUCCESS.json

Narrow columns are read until the thresholds are known, and the text only after that. Every step is a task over parts of
the dataset, run by threads of this machine or on a Ray cluster with the same results and bytes. Run again, the same
config finds its subsets and does nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import fsspec
import pyarrow as pa

from pipeline import __version__, schema
from pipeline.config import Config, Output, Select, resolved
from pipeline.errors import ConfigError, FingerprintError, SourceError
from pipeline.flows.select_engine import passes_for
from pipeline.selection.columns import check_group_type
from pipeline.selection.former import apply_former, former_rule
from pipeline.selection.passes import Passes
from pipeline.selection.ranking import Query, rank
from pipeline.selection.report import summarise
from pipeline.selection.rules import choose, num_selected
from pipeline.selection.selection import Found, Reader, Selection, found
from pipeline.shown import shown, shown_path
from pipeline.storage.filesystem import check_writable, display, open_filesystem
from pipeline.storage.manifest import load_manifest
from pipeline.storage.runs import RUN_FILE, RunPlan, differences, fingerprint_digest, read_sealed
from pipeline.storage.scored import ScoredDataset
from pipeline.storage.subset import REPORT_FILE, SubsetSpec, SubsetWriter, load_subset_manifest, open_subset
from pipeline.storage.subset_parts import FileWriter

_SCORING: Final = ("policy", "reference", "reward", "tokens")
_SLIM: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
_INTERNAL: Final = (schema.CONTENT_DIGEST, *(field.name for field in schema.OUTCOME_FIELDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRun:
    """A checked selection: where it reads and writes, and what identifies it. former: the selection it takes over."""

    config: Config
    output: Output
    select: Select
    fs: fsspec.AbstractFileSystem
    root: str
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


def prepare_select(config: Config, plan: RunPlan | None = None) -> list[SelectRun]:
    """Check the outputs and what may be there already; one run, or one for each variant of a sweep.

    plan: of the scored dataset, where it is not complete yet; left out, the scored dataset must be complete.

    Raises:
        AlignpotError: what is wrong, before a row is read.
    """
    scored = plan.fingerprint if plan is not None else open_scored(config).manifest.fingerprint
    return [_prepare(variant, scored, plan) for variant in config.variants()]


def _prepare(config: Config, scored: Mapping[str, Any], plan: RunPlan | None) -> SelectRun:
    if config.select is None or config.output is None:
        raise ConfigError("select needs a select section (fraction or k) and an output section (path); add them.")
    fs, root = open_filesystem(config.output.path, config.storage)
    if open_subset(fs, root) is None:
        check_writable(fs, root)
    former = None if config.select.stats_from is None else _former(config, config.select.stats_from, scored)
    rule = config.select
    if former is not None:
        rule = former_rule(former, Query(objective=config.objective, metric=config.metric, rule=rule))
    fingerprint = {
        "scored": fingerprint_digest(scored),
        "objective": config.objective.fingerprint(),
        "metric": config.metric.fingerprint(),
        "select": rule.fingerprint(),
        "stats_from": None if former is None else fingerprint_digest(former),
        **config.output.fingerprint(),
    }
    if plan is not None and rule.group_by is not None:
        remedy = "Name it in source.passthrough."
        schema.require_columns(plan.schema, [rule.group_by], where="select.group_by", remedy=remedy)
        check_group_type(rule.group_by, plan.schema.field(rule.group_by).type)
    if plan is not None and former is None:
        num_selected(rule, sum(shard["num_rows"] for shard in plan.shards))
    _check_output(fs, root, fingerprint)
    return SelectRun(
        config=config, output=config.output, select=rule, fs=fs, root=root, fingerprint=fingerprint, former=former
    )


def select_subsets(runs: Sequence[SelectRun]) -> list[dict[str, Any]]:
    """Write the subsets, where they are not there already, and return their reports.

    Raises:
        AlignpotError: the scored dataset does not allow a selection, or is damaged.
    """
    pending = [run for run in runs if open_subset(run.fs, run.root) is None]
    if pending:
        config = pending[0].config
        dataset = open_scored(config)
        with passes_for(config, pending[0].config.select) as passes:
            reader = Reader(dataset, [run.query for run in pending], passes)
            for run in pending:
                _write(passes, dataset, run, _found(dataset, run, reader))
    return [_report(run.fs, run.root) for run in runs]


def _found(dataset: ScoredDataset, run: SelectRun, reader: Reader) -> Found:
    columns, duplicates = reader.for_query(run.query)
    if run.former is not None:
        return apply_former(dataset, columns, duplicates, run.former, run.query)
    ranking = rank(columns, run.query, duplicates)
    return found(columns, ranking, choose(dataset, columns, ranking))


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
        fs, root = open_filesystem(path, config.storage)
        if load_subset_manifest(fs, root) is None:
            raise SourceError(f"{display(fs, root)} holds no complete subset. Run `alignpot select` first.")
        reports.append(_report(fs, root))
    return reports


@dataclass(frozen=True, slots=True, kw_only=True)
class _WriteFile:
    """Writes one file of a subset; picklable."""

    dataset: ScoredDataset
    selection: Selection
    fs: fsspec.AbstractFileSystem
    root: str
    spec: SubsetSpec
    columns: tuple[str, ...]

    def __call__(self, index: int) -> list[dict[str, Any]]:
        rows = self.spec.rows_of_file(index)
        with FileWriter(self.fs, self.root, self.spec, index) as writer:
            for table in self.selection.rows(self.dataset, self.columns, slice(rows.start, rows.stop)):
                writer.write(table.select(self.spec.schema.names).cast(self.spec.schema))
            return writer.publish()


def _write(passes: Passes, dataset: ScoredDataset, run: SelectRun, found: Found) -> None:
    selection = found.selection
    report = summarise(found, dataset)
    has_tools = any(table.column(schema.TOOLS).null_count < table.num_rows for table in dataset.tables([schema.TOOLS]))
    columns = _columns(dataset.schema, slim=run.output.slim, has_tools=has_tools)
    spec = SubsetSpec(
        num_rows=selection.k,
        schema=_subset_schema(dataset.schema, columns, slim=run.output.slim),
        formats=run.output.formats,
        rows_per_file=run.output.rows_per_file,
        fingerprint=run.fingerprint,
        config=resolved(run.config),
        version=__version__,
    )
    with SubsetWriter(run.fs, run.root, spec) as writer:
        if writer.done is None:
            task = _WriteFile(
                dataset=dataset,
                selection=selection,
                fs=run.fs,
                root=run.root,
                spec=writer.spec,
                columns=tuple(columns),
            )
            for records in passes.map(task, range(writer.spec.num_files)):
                writer.add(records)
            scored_by = _scored_by(dataset.manifest.fingerprint)
            writer.finish(report=report, extra={"selection": report["selection"], "scored_by": scored_by})


def _scored_by(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the scores of a row, whatever data it is of."""
    return {name: fingerprint.get(name) for name in _SCORING}


def _former(config: Config, path: str, scored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The selection in a subset's manifest, which must be of scores like those of `scored`."""
    fs, full = open_filesystem(path, config.storage)
    path = shown_path(path)
    manifest = read_sealed(fs, full)
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


def open_scored(config: Config) -> ScoredDataset:
    """The complete dataset at `scored`.

    Raises:
        SourceError: there is none.
    """
    fs, root = open_filesystem(config.scored, config.storage)
    return ScoredDataset(fs, root, load_manifest(fs, root))


def _check_output(fs: fsspec.AbstractFileSystem, root: str, fingerprint: Mapping[str, Any]) -> None:
    """Refuse an output of another selection now, rather than after hours of scoring."""
    run = read_sealed(fs, f"{root}/{RUN_FILE}")
    if run is None:
        return
    if run.get("kind") != "subset":
        raise FingerprintError(f"{display(fs, root)} holds a scored dataset, no subset. Give another output.path.")
    stored = run.get("fingerprint", {})
    decisive = {name: value for name, value in stored.items() if name != "layout"}
    found = list(differences(decisive, dict(fingerprint)))
    if found:
        fields = ", ".join(f"{shown(field)} ({shown(was)} there, {shown(wanted)} here)" for field, was, wanted in found)
        raise FingerprintError(
            f"{display(fs, root)} holds another subset; what differs: {fields}. Give another output.path."
        )


def _report(fs: fsspec.AbstractFileSystem, root: str) -> dict[str, Any]:
    path = f"{root}/{REPORT_FILE}"
    report = read_sealed(fs, path)
    if report is None:
        raise SourceError(f"{display(fs, path)} is missing from a complete subset. Select again to another path.")
    return report


def _columns(scored: pa.Schema, *, slim: bool, has_tools: bool) -> list[str]:
    """Columns of the scored dataset that the subset keeps; tools only where a pair has some."""
    names = list(_SLIM) if slim else [name for name in scored.names if name not in _INTERNAL]
    names = [name for name in names if name != schema.TOOLS]
    return [*names, schema.TOOLS] if has_tools else names


def _subset_schema(scored: pa.Schema, columns: list[str], *, slim: bool) -> pa.Schema:
    kept = [scored.field(name) for name in columns]
    return pa.schema(kept if slim else [*kept, *schema.SUBSET_FIELDS])
