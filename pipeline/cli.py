"""The `alignpot` command. Parses first and imports the heavy parts after, so that help and config errors are quick."""

import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline import __version__
from pipeline.cli_cluster import cluster
from pipeline.cli_options import ConfigPath, Overrides, echo, say
from pipeline.cli_reference import reference
from pipeline.errors import AlignpotError, ConfigError
from pipeline.progress import no_bars
from pipeline.shown import LogFormatter
from pipeline.termination import heed_sigterm

if TYPE_CHECKING:
    from pipeline.config import Config, Storage

app = typer.Typer(
    name="alignpot",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(reference)
app.add_typer(cluster)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print tokens and GPU-hours; run nothing.")]
PagePath = Annotated[Path | None, typer.Option("--html", metavar="PATH", help="Write one page of HTML there.")]
EndpointUrl = Annotated[str | None, typer.Option(help="S3 endpoint, if not AWS.")]


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
    storage = _storage(endpoint_url).model_dump()
    found = api.compare(scored, metrics=metrics or (), objective=objective, storage=storage, **given)
    if html is not None:
        from pipeline.report import comparison_page
        from pipeline.steps.pages import write_page

        say(write_page(html, comparison_page(found)))
        return
    say(json.dumps(found.to_dict()) if as_json else render_comparison(found))


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
def audit(
    scored: Annotated[str, typer.Argument(help="A scored dataset.", show_default=False)],
    output: Annotated[Path, typer.Option(metavar="FILE", help="A .csv or .parquet file.", show_default=False)],
    above: Annotated[float, typer.Option(min=0, max=1, help="Lowest probability of a wrong label.")] = 0.5,
    objective: Annotated[
        str, typer.Option(help="NAME:key=value,...; default: as when scored.", show_default=False)
    ] = "",
    endpoint_url: EndpointUrl = None,
    *,
    text: Annotated[bool, typer.Option("--text", help="Also write prompt, chosen and rejected.")] = False,
) -> None:
    """Write the pairs whose label is likely wrong, by reward and policy, for people to look at."""
    from pipeline import api
    from pipeline.steps.suspicious import write_audit

    found = api.audit(scored, objective=objective, above=above, text=text, storage=_storage(endpoint_url))
    say(write_audit(found.to_arrow(), output))


class _ExportCommand(TyperCommand):
    """Names the formats in its help; their registry is imported only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from pipeline.exports.formats import FORMATS

        vars(next(option for option in self.params if option.name == "to"))["help"] = f"One of {', '.join(FORMATS)}."
        super().format_help(ctx, formatter)


@app.command(cls=_ExportCommand)
def export(
    subset: Annotated[str, typer.Argument(help="A subset that alignpot wrote.", show_default=False)],
    to: Annotated[str, typer.Option(metavar="FORMAT", show_default=False)],
    output: Annotated[str, typer.Option(metavar="FOLDER", help="Where the export goes.", show_default=False)],
    endpoint_url: EndpointUrl = None,
    *,
    slim: Annotated[bool, typer.Option("--slim", help="Only the columns that the trainer reads.")] = False,
    drop_unfit: Annotated[bool, typer.Option("--drop-unfit", help="Leave out pairs that do not fit.")] = False,
) -> None:
    """Write a subset in the format of a trainer."""
    from pipeline import api

    say(api.export(subset, to, output, slim=slim, drop_unfit=drop_unfit, storage=_storage(endpoint_url)))


@app.command()
def push(
    subset: Annotated[str, typer.Argument(help="A subset that alignpot wrote.", show_default=False)],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The dataset on the hub.", show_default=False)],
    endpoint_url: EndpointUrl = None,
    *,
    public: Annotated[bool, typer.Option("--public", help="Make a new dataset public; default: private.")] = False,
) -> None:
    """Push a subset to the Hugging Face Hub in one commit, with a card; nothing if it is there already."""
    from pipeline import api

    say(api.push(subset, repo, public=public, storage=_storage(endpoint_url)))


@app.command()
def inspect(  # noqa: PLR0913 - each option is a key of the config
    path: Annotated[str, typer.Argument(help="File, folder or URL of preference data.", show_default=False)],
    *,
    source_format: Annotated[str, typer.Option("--format", help="Read as this format instead of deciding.")] = "auto",
    split: Annotated[str | None, typer.Option(help="As the key source.split.")] = None,
    config: Annotated[str | None, typer.Option(help="As the key source.config.")] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of source: columns.prompt=question; repeatable."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="MODEL", help="Count tokens, too.")] = None,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Print the first N pairs, with their text.")] = 0,
    max_dropped: Annotated[float, typer.Option(min=0, max=1, help="As the key run.max_dropped.")] = 0.1,
    endpoint_url: EndpointUrl = None,
    region: Annotated[str | None, typer.Option(help="S3 region, if not the one of your AWS settings.")] = None,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Read a public bucket without credentials.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show what preference data is: format, shapes, problems. Ends with exit code 2 if no row of the sample gives a
    pair, and with 3 if too many of them would be dropped.
    """
    from pipeline.config import Source
    from pipeline.config.load import parse
    from pipeline.data.place import Place
    from pipeline.sources.inspect import inspect_source
    from pipeline.sources.inspected import as_json as json_of
    from pipeline.sources.inspected import render

    given = {"path": path, "format": source_format, "split": split, "config": config}
    source = parse(Source, given, "the source", keys or ())
    place = Place.of_source(path, _storage(endpoint_url, region=region, anonymous=anonymous))
    count = None if tokenizer is None else _token_counter(tokenizer)
    found = inspect_source(place.fs, place.root, source, num_examples=show, count_tokens=count)
    say(json_of(found) if as_json else render(found))
    if not found.num_pairs:
        raise typer.Exit(2)
    if found.share_dropped > max_dropped:
        raise typer.Exit(3)


@app.command()
def verify(
    path: Annotated[str, typer.Argument(help="A scored dataset, a subset or an export.", show_default=False)],
    endpoint_url: EndpointUrl = None,
) -> None:
    """Read a dataset whole and check that it is as it was written. Ends with exit code 1 if it is not."""
    from pipeline.data import verify as verification
    from pipeline.data.place import Place

    place = Place.open(path, _storage(endpoint_url))
    place.check_readable()
    say(verification.verify(place))


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


def _token_counter(model: str) -> "Callable[[str], int]":
    from pipeline.config import TorchModel
    from pipeline.models.loading import load_tokenizer

    tokenizer = load_tokenizer(TorchModel(model=model))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _config(path: Path, overrides: Sequence[str] | None) -> "Config":
    from pipeline.config import load_config

    return load_config(path, overrides or ())


def _storage(endpoint_url: str | None, **options: Any) -> "Storage":
    from pydantic import ValidationError

    from pipeline.config import Storage

    try:
        return Storage(endpoint_url=endpoint_url, **options)
    except ValidationError:
        raise ConfigError("--endpoint-url must not carry credentials; use the AWS variables or a role.") from None


def _version(*, value: bool) -> None:
    if value:
        typer.echo(f"alignpot {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")] = False,
) -> None:
    """Choose the preference pairs a language model can still learn most from."""
    del version


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
        # Lines after the first are set in, so that none can pass for a line of the log.
        typer.echo(re.sub(r"\n(?! )", "\n  ", f"{type(error).__name__}: {error}"), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
