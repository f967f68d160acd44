"""The commands that take a config, as functions: each yields the texts to print, as soon as they are known.

Imports in functions keep readers and models out of the commands that do not need them, such as select.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.config import Config, PromptsConfig, RewardConfig, resolved
from pipeline.data.place import Place
from pipeline.data.run import Plan
from pipeline.observers.facts import tell_copy
from pipeline.observers.observed import Observed, observed
from pipeline.selection.report import render
from pipeline.steps.select import SelectRun, load_reports, prepare_select, select_subsets
from pipeline.steps.told import tell_config, tell_rewarding, tell_scored, tell_scoring, tell_selected, tell_selecting


def run_all(config: Config) -> Iterator[str]:
    """Score, select and report. Errors that the config shows are raised before a model loads."""
    from pipeline.steps.score import check_dropped, prepare_score, score
    from pipeline.steps.summary import render_score

    with _observed("run", config) as told:
        scoring = prepare_score(config)
        told.add(tell_scoring, *scoring)
        subsets = _prepared(config, scoring[-1].plan)
        told.add(tell_selecting, subsets)
        told.begin()
        summary, manifest = score(*scoring)
        told.add(tell_scored, summary, manifest)
        yield f"{render_score(summary, manifest, config.scored)}\n"
        check_dropped(config, manifest)
        yield from _select(subsets, told)


def score_only(config: Config) -> Iterator[str]:
    """Write the scored dataset."""
    from pipeline.steps.score import check_dropped, prepare_score, score
    from pipeline.steps.summary import render_score

    with _observed("score", config) as told:
        scoring = prepare_score(config)
        told.add(tell_scoring, *scoring)
        told.begin()
        summary, manifest = score(*scoring)
        told.add(tell_scored, summary, manifest)
        yield f"{render_score(summary, manifest, config.scored)}\n"
        check_dropped(config, manifest)


def reward_only(config: RewardConfig) -> Iterator[str]:
    """Write the rewarded dataset."""
    from pipeline.steps.reward import prepare_reward, reward
    from pipeline.steps.score import check_dropped
    from pipeline.steps.summary import render_score

    with observed("reward", config.rewarded, config.model_dump(mode="json"), config.run.track) as told:
        rewarding = prepare_reward(config)
        told.add(tell_rewarding, *rewarding)
        told.begin()
        summary, manifest = reward(*rewarding)
        told.add(tell_scored, summary, manifest)
        yield f"{render_score(summary, manifest, config.rewarded)}\n"
        check_dropped(config, manifest)


def prompts_only(config: PromptsConfig) -> Iterator[str]:
    """Write the prompts whose candidates lie inside a band."""
    from pipeline.steps.prompts import choose_prompts, open_candidates

    with observed("prompts", config.output, config.model_dump(mode="json")) as told:
        candidates, output = open_candidates(config), Place.open(config.output, config.storage)
        kind = candidates.manifest.kind
        told.add(tell_copy, config.candidates, candidates.place, kind=kind)
        told.begin()
        yield choose_prompts(config, candidates, output)
        told.add(tell_copy, config.candidates, candidates.place, output, kind=kind)


def estimated(config: Config, *, select: bool) -> Iterator[str]:
    """What `run_all`, or without `select` `score_only`, would take; runs nothing."""
    from pipeline.steps.dry_run import dry_run

    return dry_run(config, select=select)


def select_only(config: Config) -> Iterator[str]:
    """Write a subset of a scored dataset, or those of a sweep."""
    with _observed("select", config) as told:
        subsets = _prepared(config)
        told.add(tell_selecting, subsets)
        told.begin()
        yield from _select(subsets, told)


def report_only(config: Config) -> Iterator[str]:
    """The report of a subset that was written before."""
    return map(render, load_reports(config))


@contextmanager
def _observed(command: str, config: Config) -> Iterator[Observed]:
    place = config.scored if config.output is None or command == "score" else config.output.path
    with observed(command, place, resolved(config), config.run.track) as told:
        told.add(tell_config, config)
        yield told


def _prepared(config: Config, plan: Plan | None = None) -> list[SelectRun]:
    """The checked selections, whose targets on the hub and tables are checked too."""
    runs = prepare_select(config, plan)
    for run in runs:
        if run.output.hub is not None:
            from pipeline.exports.hub import check_access

            check_access(run.output.hub)
        if run.output.table is not None:
            from pipeline.exports.tables.publish import check_target

            check_target(run.output.table, run.config.storage)
    return runs


def _select(runs: Sequence[SelectRun], told: Observed) -> Iterator[str]:
    for run, report in zip(runs, select_subsets(runs), strict=True):
        told.add(tell_selected, run.output, run.place, report, is_variant=len(runs) > 1)
        yield f"{render(report)}\n"
        yield run.where()
        if run.output.hub is not None:
            from pipeline.exports.hub import push_subset

            yield push_subset(run.place, run.output.hub)
        if run.output.table is not None:
            from pipeline.exports.tables.publish import publish

            yield publish(run.place, run.output.table, run.config.storage)
