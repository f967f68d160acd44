"""The commands that print what a config can say: objectives, metrics and config."""

from typing import Annotated

import typer

from pipeline.cli_options import echo
from pipeline.errors import ConfigError

reference = typer.Typer()


@reference.command()
def objectives() -> None:
    """List the training objectives: formula, reference or not, parameters, source."""
    from pipeline.metrics.listing import describe_objectives

    echo(describe_objectives())


@reference.command()
def metrics() -> None:
    """List the metrics and the ways to set the ratio: formula, source."""
    from pipeline.metrics.listing import describe_metrics

    echo(describe_metrics())


@reference.command("config")
def config_(
    *,
    as_markdown: Annotated[bool, typer.Option("--reference", help="Every key, as Markdown; the default.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema of a config, for editors.")] = False,
    self_play: Annotated[bool, typer.Option("--self-play", help="With --schema: that of self-play.")] = False,
) -> None:
    """Print what a config can hold: sections, keys, defaults and meanings."""
    from pipeline.config import reference as printed

    if as_markdown and schema:
        raise ConfigError("give one of --reference and --schema.")
    echo([printed.json_schema(self_play=self_play)] if schema else printed.reference())
