"""The commands as functions: each takes a config and returns the text to print."""

from pipeline.config import Config
from pipeline.flows.score import check_dropped, prepare_score, score
from pipeline.flows.select import load_report, prepare_select, select_subset
from pipeline.flows.summary import render_score
from pipeline.selection.report import render


def run_all(config: Config) -> str:
    """Score, select and report. Everything that can be wrong with the config is found before a model loads."""
    score_run = prepare_score(config)
    subset = prepare_select(config, score_run.plan)
    summary, manifest = score(score_run)
    check_dropped(config, manifest)
    return f"{render_score(summary)}\n\n{render(select_subset(subset))}\n\n{subset.where()}"


def score_only(config: Config) -> str:
    """Write the scored dataset."""
    summary, manifest = score(prepare_score(config))
    check_dropped(config, manifest)
    return render_score(summary)


def select_only(config: Config) -> str:
    """Write a subset of a scored dataset."""
    subset = prepare_select(config)
    return f"{render(select_subset(subset))}\n\n{subset.where()}"


def report_only(config: Config) -> str:
    """The report of a subset that was written before."""
    return render(load_report(config))
