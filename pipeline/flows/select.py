"""Select a subset of a scored dataset: survey, threshold, then one pass that writes.

    check ids -> moments -> threshold -> rows over it, in the order of the scored dataset -> _SUCCESS.json

Narrow columns are read until the threshold is known, and the text only after that. Plain Python: one machine streams
a scored dataset of any size in constant memory. Run again, the same config finds its subset and does nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import fsspec
import pyarrow as pa

from pipeline import __version__, schema
from pipeline.config import Config, Output, Select, resolved
from pipeline.errors import ConfigError, FingerprintError, SourceError
from pipeline.selection.report import summarise
from pipeline.selection.selection import Selection
from pipeline.selection.top_k import num_selected, select
from pipeline.storage.duplicates import check_ids
from pipeline.storage.filesystem import check_writable, display, open_filesystem, read_bytes
from pipeline.storage.manifest import load_manifest
from pipeline.storage.runs import RUN_FILE, RunPlan, differences, fingerprint_digest, parsed
from pipeline.storage.scored import ScoredDataset
from pipeline.storage.subset import REPORT_FILE, SubsetSpec, SubsetWriter, load_subset_manifest, open_subset

_SLIM: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
_INTERNAL: Final = (schema.CONTENT_DIGEST, *(field.name for field in schema.OUTCOME_FIELDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRun:
    """A checked selection: where it reads and writes, and what identifies it."""

    config: Config
    output: Output
    select: Select
    fs: fsspec.AbstractFileSystem
    root: str
    fingerprint: Mapping[str, Any]

    def where(self) -> str:
        """Where the subset lies and how to load it."""
        path = self.output.path.rstrip("/")
        lines = [f"subset: {path}"]
        if "hf" in self.output.formats:
            lines.append(f'  datasets.load_from_disk("{path}/hf")["train"]')
        if "parquet" in self.output.formats:
            lines.append(f'  datasets.load_dataset("parquet", data_files="{path}/parquet/*.parquet")["train"]')
        return "\n".join(lines)


def prepare_select(config: Config, plan: RunPlan | None = None) -> SelectRun:
    """Check the output and what may be there already.

    plan: of the scored dataset, where it is not complete yet; left out, the scored dataset must be complete.

    Raises:
        AlignpotError: what is wrong, before a row is read.
    """
    if config.select is None or config.output is None:
        raise ConfigError("select needs a select section (fraction or k) and an output section (path); add them.")
    fs, root = open_filesystem(config.output.path, config.storage)
    check_writable(fs, root)
    scored = plan.fingerprint if plan is not None else _dataset(config).manifest.fingerprint
    fingerprint = {
        "scored": fingerprint_digest(scored),
        "objective": config.objective.model_dump(mode="json"),
        "metric": config.metric.model_dump(mode="json"),
        "select": config.select.model_dump(mode="json"),
        "slim": config.output.slim,
        "formats": sorted(config.output.formats),
    }
    if plan is not None:
        num_selected(config.select, sum(shard["num_rows"] for shard in plan.shards))
    _check_output(fs, root, fingerprint)
    return SelectRun(
        config=config, output=config.output, select=config.select, fs=fs, root=root, fingerprint=fingerprint
    )


def select_subset(run: SelectRun) -> dict[str, Any]:
    """Write the subset, if it is not there already, and return its report.

    Raises:
        AlignpotError: the scored dataset does not allow the selection, or is damaged.
    """
    if open_subset(run.fs, run.root) is not None:
        return _report(run.fs, run.root)
    dataset = _dataset(run.config)
    duplicates = check_ids(dataset).duplicate_positions
    selection = select(dataset, run.config.objective, run.config.metric, run.select, duplicates)
    columns = _columns(dataset, slim=run.output.slim)
    spec = SubsetSpec(
        num_rows=selection.k,
        schema=_subset_schema(dataset.schema, columns, slim=run.output.slim),
        formats=run.output.formats,
        rows_per_file=run.output.rows_per_file,
        fingerprint=run.fingerprint,
        config=resolved(run.config),
        version=__version__,
    )
    report = summarise(dataset, selection)
    with SubsetWriter(run.fs, run.root, spec) as writer:
        if writer.done is None:
            for rows in _selected(dataset, selection, columns):
                writer.write(rows.select(spec.schema.names).cast(spec.schema))
            writer.finish(report=report, extra={"selection": selection.to_dict()})
    return report


def load_report(config: Config) -> dict[str, Any]:
    """The report of the subset at `output.path`.

    Raises:
        SourceError: there is no complete subset.
    """
    if config.output is None:
        raise ConfigError("report needs an output section with the path of the subset; the config has none.")
    fs, root = open_filesystem(config.output.path, config.storage)
    if load_subset_manifest(fs, root) is None:
        raise SourceError(f"{config.output.path} holds no complete subset. Run `alignpot select` first.")
    return _report(fs, root)


def _dataset(config: Config) -> ScoredDataset:
    fs, root = open_filesystem(config.scored, config.storage)
    return ScoredDataset(fs, root, load_manifest(fs, root))


def _check_output(fs: fsspec.AbstractFileSystem, root: str, fingerprint: Mapping[str, Any]) -> None:
    """Refuse an output of another selection now, rather than after hours of scoring."""
    data = read_bytes(fs, f"{root}/{RUN_FILE}")
    if data is None:
        return
    run = parsed(data, display(fs, f"{root}/{RUN_FILE}"))
    if run.get("kind") != "subset":
        raise FingerprintError(f"{display(fs, root)} holds a scored dataset, no subset. Give another output.path.")
    stored = run.get("fingerprint", {})
    decisive = {name: value for name, value in stored.items() if name != "layout"}
    found = list(differences(decisive, dict(fingerprint)))
    if found:
        fields = ", ".join(f"{field} ({was} there, {wanted} here)" for field, was, wanted in found)
        raise FingerprintError(
            f"{display(fs, root)} holds another subset; what differs: {fields}. Give another output.path."
        )


def _report(fs: fsspec.AbstractFileSystem, root: str) -> dict[str, Any]:
    path = f"{root}/{REPORT_FILE}"
    data = read_bytes(fs, path)
    if data is None:
        raise SourceError(f"{display(fs, path)} is missing from a complete subset. Select again to another path.")
    report: dict[str, Any] = json.loads(data)
    return report


def _columns(dataset: ScoredDataset, *, slim: bool) -> list[str]:
    """Columns of the scored dataset that the subset keeps; tools only where a pair has some."""
    names = list(_SLIM) if slim else [name for name in dataset.schema.names if name not in _INTERNAL]
    has_tools = any(table.column(schema.TOOLS).null_count < table.num_rows for table in dataset.tables([schema.TOOLS]))
    names = [name for name in names if name != schema.TOOLS]
    return [*names, schema.TOOLS] if has_tools else names


def _subset_schema(scored: pa.Schema, columns: list[str], *, slim: bool) -> pa.Schema:
    kept = [scored.field(name) for name in columns]
    return pa.schema(kept if slim else [*kept, *schema.SUBSET_FIELDS])


def _selected(dataset: ScoredDataset, selection: Selection, columns: list[str]) -> Iterator[pa.Table]:
    first_row = 0
    for table in dataset.tables(list(dict.fromkeys([*columns, *selection.columns]))):
        yield selection.apply(table, first_row=first_row)
        first_row += table.num_rows
