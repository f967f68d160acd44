"""The commands that take a config, as functions: each yields the texts to print, as soon as they are known.

Imports in functions keep readers and models out of the commands that do not need them, such as select.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.config import Config
from pipeline.data.run import Plan
from pipeline.errors import ConfigError
from pipeline.faults import storage_errors
from pipeline.selection.report import render
from pipeline.shown import shown_path
from pipeline.steps.select import SelectRun, load_reports, prepare_select, select_subsets


def run_all(config: Config) -> Iterator[str]:
    """Score, select and report. Errors that the config shows are raised before a model loads."""
    from pipeline.steps.score import check_dropped, prepare_score, score
    from pipeline.steps.summary import render_score

    scoring = prepare_score(config)
    subsets = _prepared(config, scoring[-1].plan)
    summary, manifest = score(*scoring)
    yield f"{render_score(summary, manifest, config.scored)}\n"
    check_dropped(config, manifest)
    yield from _select(subsets)


def score_only(config: Config) -> Iterator[str]:
    """Write the scored dataset."""
    from pipeline.steps.score import check_dropped, prepare_score, score
    from pipeline.steps.summary import render_score

    summary, manifest = score(*prepare_score(config))
    yield f"{render_score(summary, manifest, config.scored)}\n"
    check_dropped(config, manifest)


def estimated(config: Config, *, select: bool) -> Iterator[str]:
    """What `run_all`, or without `select` `score_only`, would take; runs nothing."""
    from pipeline.steps.dry_run import dry_run

    return dry_run(config, select=select)


def select_only(config: Config) -> Iterator[str]:
    """Write a subset of a scored dataset, or those of a sweep."""
    return _select(_prepared(config))


def report_only(config: Config) -> Iterator[str]:
    """The report of a subset that was written before."""
    return map(render, load_reports(config))


def report_pages(config: Config, path: Path, num_examples: int) -> Iterator[str]:
    """Write the pages of subsets that were written before; those of a sweep have the variant in their name."""
    from pipeline.steps.pages import pages

    for name, page in pages(config, num_examples):
        target = path.with_stem(f"{path.stem}-{name}") if config.sweep else path
        yield write_page(target, page)


def write_page(path: Path, page: str) -> str:
    """Write a page; what was written, in words."""
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    return f"page: {shown_path(path)}"


def _prepared(config: Config, plan: Plan | None = None) -> list[SelectRun]:
    """The checked selections, whose targets on the hub are checked too."""
    runs = prepare_select(config, plan)
    for run in runs:
        if run.output.hub is not None:
            from pipeline.exports.hub import check_access

            check_access(run.output.hub)
    return runs


def _select(runs: Sequence[SelectRun]) -> Iterator[str]:
    for run, report in zip(runs, select_subsets(runs), strict=True):
        yield f"{render(report)}\n"
        yield run.where()
        if run.output.hub is not None:
            from pipeline.exports.hub import push_subset

            yield push_subset(run.place, run.output.hub)


def write_audit(pairs: pa.Table, path: Path) -> str:
    """Write suspicious pairs as CSV or Parquet, by the ending of the path; what was written, in words.

    Raises a ConfigError if the path ends otherwise.
    """
    if path.suffix not in {".csv", ".parquet"}:
        raise ConfigError(f"--output {shown_path(path)} must end with .csv or .parquet.")
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pairs, path)
        else:
            # Messages stand as JSON in their cells.
            texts = {field.name for field in pairs.schema if pa.types.is_list(field.type)}
            columns = {
                name: [json.dumps(each, ensure_ascii=False) for each in pairs.column(name).to_pylist()]
                if name in texts
                else pairs.column(name)
                for name in pairs.column_names
            }
            csv.write_csv(pa.table(columns), path)
    return f"{pairs.num_rows:,} pairs: {shown_path(path)}"
