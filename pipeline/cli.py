"""The `alignpot` command. Parses first and imports the heavy parts after, so that help and config errors are quick."""

import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import __version__
from pipeline.cli_cluster import cluster
from pipeline.cli_data import EndpointUrl, data, storage_of
from pipeline.cli_options import ConfigPath, Overrides, echo, say
from pipeline.cli_reference import reference
from pipeline.errors import AlignpotError, ConfigError
from pipeline.progress import no_bars
from pipeline.shown import JsonFormatter, LogFormatter
from pipeline.termination import heed_sigterm

if TYPE_CHECKING:
    from pipeline.config import Config

app = typer.Typer(
    name="alignpot",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data)
app.add_typer(reference)
app.add_typer(cluster)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print tokens and GPU-hours; run nothing.")]
PagePath = Annotated[Path | None, typer.Option("--html", metavar="PATH", help="Write one page of HTML there.")]


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, *, dry_run: DryRun = False) -> None:
    """Score, select and report: the whole job."""
    from pipeline.commands import estimated, run_all

    loaded = _config(config, overrides)
    echo(estimated(loaded, select=True) if dry_run else run_all(loaded))


@app.command()
def score(config: ConfigPath, overrides: Overrides = None, *, dry_run: DryRun = False) -> None:
    """Run the models and write the scored dataset. Goes on where an earlier run stopped."""
    from pipeline.commands import estimated, score_only

    loaded = _config(config, overrides)
    echo(estimated(loaded, select=False) if dry_run else score_only(loaded))


@app.command()
def reward(config: ConfigPath, overrides: Overrides = None) -> None:
    """Give every response to a prompt its reward, one or several to a prompt. Goes on where an earlier run stopped."""
    from pipeline.commands import reward_only
    from pipeline.config import load_reward

    echo(reward_only(load_reward(config, overrides or ())))


@app.command()
def select(
    config: ConfigPath,
    overrides: Overrides = None,
    stats_from: Annotated[str | None, typer.Option(metavar="MANIFEST", help="As the key select.stats_from.")] = None,
) -> None:
    """Rank a scored dataset and write the subset. Needs no model and no GPU."""
    from pipeline.commands import select_only

    stats = [] if stats_from is None else [f"select.stats_from={stats_from}"]
    echo(select_only(_config(config, [*(overrides or ()), *stats])))


@app.command()
def compare(  # noqa: PLR0913 - each option says what is compared or how it is shown
    scored: Annotated[str, typer.Argument(help="A scored dataset.", show_default=False)],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="NAME or NAME:key=value,...; default: those with columns.")
    ] = None,
    fractions: Annotated[list[float] | None, typer.Option("--fraction", help="Default: 0.1, 0.4; repeatable.")] = None,
    objective: Annotated[str, typer.Option(help="As a metric; default: as when scored.", show_default=False)] = "",
    endpoint_url: EndpointUrl = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    html: PagePath = None,
) -> None:
    """Show how far metrics agree: overlap of what they select, rank correlation, and contradiction."""
    from pipeline import api
    from pipeline.selection.compare import render_comparison

    given = {"fractions": fractions} if fractions else {}
    storage = storage_of(endpoint_url).model_dump()
    found = api.compare(scored, metrics=metrics or (), objective=objective, storage=storage, **given)
    if html is not None:
        from pipeline.report import comparison_page
        from pipeline.steps.pages import write_page

        say(write_page(html, comparison_page(found)))
        return
    say(json.dumps(found.to_dict()) if as_json else render_comparison(found))


@app.command()
def calibrate(
    config: ConfigPath,
    against: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="The second config; default: the first, changed by --set.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the second config; repeatable.")
    ] = None,
    rows: Annotated[int, typer.Option(min=2, help="How many rows, a seeded sample.")] = 256,
    keep: Annotated[str | None, typer.Option(metavar="FOLDER", help="Keep both scored datasets there.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Score some rows by two back ends or models, and show how far margins, ranks and selections agree."""
    from pipeline.steps.calibrate import calibrate as compare_sides
    from pipeline.steps.calibrate import render_calibration

    if against is None and not overrides:
        raise ConfigError("calibrate compares two configs: give --against CONFIG or --set KEY=VALUE, or both.")
    first, second = _config(config, None), _config(against or config, overrides)
    found = compare_sides(first, second, num_rows=rows, keep=keep)
    say(json.dumps(found) if as_json else render_calibration(found))


@app.command()
def report(
    config: ConfigPath,
    overrides: Overrides = None,
    html: PagePath = None,
    examples: Annotated[
        int, typer.Option(min=0, max=50, metavar="N", help="With --html: show N pairs of each kind, with their text.")
    ] = 0,
) -> None:
    """Print the report of a subset that was written before, or write it as a page."""
    from pipeline.commands import report_only
    from pipeline.steps.pages import write_pages

    if examples and html is None:
        raise ConfigError("--examples are shown on a page: give --html PATH too.")
    loaded = _config(config, overrides)
    echo(report_only(loaded) if html is None else write_pages(loaded, html, examples))


@app.command()
def prompts(config: ConfigPath, overrides: Overrides = None) -> None:
    """Choose prompts by the rewards of their candidates, by pass rate or variance, for trainers such as GRPO."""
    from pipeline.commands import prompts_only
    from pipeline.config import load_prompts

    echo(prompts_only(load_prompts(config, overrides or ())))


@app.command("self-play")
def self_play(config: ConfigPath, overrides: Overrides = None, *, dry_run: DryRun = False) -> None:
    """Let the policy make its own data: generate, judge, select, train, repeat. Goes on where it stopped."""
    from pipeline.config import load_self_play

    loaded = load_self_play(config, overrides or ())
    if dry_run:
        from pipeline.selfplay.estimate import dry_run as play
    else:
        from pipeline.selfplay.rounds import self_play as play
    echo(play(loaded))


@app.command()
def demo(
    workdir: Annotated[Path | None, typer.Option(help="Folder; default: .demo or .demo-self-play.")] = None,
    pairs: Annotated[int | None, typer.Option(help="How many of the 307 pairs to score; default: 100.")] = None,
    overrides: Overrides = None,
    *,
    self_play: Annotated[bool, typer.Option("--self-play", help="Two rounds of self-play instead.")] = False,
) -> None:
    """Run the whole job on data that ships with alignpot and on small, but real, models."""
    from pipeline.demo.run import run_demo, run_self_play_demo

    if not self_play:
        echo(run_demo(workdir or Path(".demo"), 100 if pairs is None else pairs, overrides or ()))
    elif pairs is None:
        echo(run_self_play_demo(workdir or Path(".demo-self-play"), overrides or ()))
    else:
        raise ConfigError("--pairs is for the demo without --self-play, which makes its own pairs. Leave it out.")


def _config(path: Path, overrides: Sequence[str] | None) -> "Config":
    from pipeline.config import load_config

    return load_config(path, overrides or ())


def _version(*, value: bool) -> None:
    if value:
        typer.echo(f"alignpot {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")] = False,
    log_json: Annotated[
        bool,
        typer.Option("--log-json", envvar="ALIGNPOT_LOG_JSON", help="Write the log as lines of JSON, progress too."),
    ] = False,
) -> None:
    """Choose the preference pairs a language model can still learn most from."""
    del version
    if log_json:
        no_bars()
        for handler in logging.root.handlers:
            handler.setFormatter(JsonFormatter())


def main(argv: list[str] | None = None) -> None:
    """Run a command line and exit with its code: one clear message on stderr for every AlignpotError."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    heed_sigterm()
    if not sys.stderr.isatty():
        no_bars()
    try:
        app(args=argv, prog_name="alignpot")
    except AlignpotError as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(logging.root.handlers[0].formatter, JsonFormatter):
            logging.getLogger(__name__).error("%s", text)
        else:  # lines after the first are set in, so that none can pass for a line of the log
            typer.echo(re.sub(r"\n(?! )", "\n  ", text), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
