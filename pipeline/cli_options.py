"""Arguments that several commands share, and the way they print."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.shown import printable

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The config file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one key; repeatable.")
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Ray dashboard, such as http://head:8265.", show_default=False),
]


def say(text: str) -> None:
    """Print a text, safe for the terminal."""
    typer.echo(printable(text))


def echo(texts: Iterable[str]) -> None:
    """Print texts as soon as they are known."""
    for text in texts:
        say(text)
