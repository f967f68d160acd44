"""The commands on data: what a source is, what a dataset holds, and where subsets go."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline.cli_options import say
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Storage

data = typer.Typer()

EndpointUrl = Annotated[str | None, typer.Option(help="S3 endpoint, if not AWS.")]


@data.command()
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

    found = api.audit(scored, objective=objective, above=above, text=text, storage=storage_of(endpoint_url))
    say(write_audit(found.to_arrow(), output))


class _ExportCommand(TyperCommand):
    """Names the formats in its help; their registry is imported only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from pipeline.exports.formats import FORMATS

        vars(next(option for option in self.params if option.name == "to"))["help"] = f"One of {', '.join(FORMATS)}."
        super().format_help(ctx, formatter)


@data.command(cls=_ExportCommand)
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

    say(api.export(subset, to, output, slim=slim, drop_unfit=drop_unfit, storage=storage_of(endpoint_url)))


@data.command()
def push(
    subset: Annotated[str, typer.Argument(help="A subset that alignpot wrote.", show_default=False)],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The dataset on the hub.", show_default=False)],
    endpoint_url: EndpointUrl = None,
    *,
    public: Annotated[bool, typer.Option("--public", help="Make a new dataset public; default: private.")] = False,
) -> None:
    """Push a subset to the Hugging Face Hub in one commit, with a card; nothing if it is there already."""
    from pipeline import api

    say(api.push(subset, repo, public=public, storage=storage_of(endpoint_url)))


@data.command()
def publish(  # noqa: PLR0913, PLR0917 - each option is a key of the config
    dataset: Annotated[str, typer.Argument(help="A subset or a scored dataset.", show_default=False)],
    table: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="iceberg://CATALOG/NAMESPACE.TABLE, delta://PATH, lance://PATH.", show_default=False
        ),
    ],
    mode: Annotated[str, typer.Option(help="append the rows, or replace those of the table or partition.")] = "append",
    partition: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Of a partitioned table: the partition. Once for each column."),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="For lance: a name of the version.")] = None,
    split: Annotated[str, typer.Option(help="Of a subset with held-out rows, which ones.")] = "train",
    endpoint_url: EndpointUrl = None,
) -> None:
    """Publish rows in a table in one commit; nothing if they are there already."""
    from pipeline import api

    values = dict(text.partition("=")[::2] for text in partition or [])
    if not all("=" in text for text in partition or []):
        raise ConfigError("--partition: wanted COLUMN=VALUE, such as day=2026-11-29.")
    storage = storage_of(endpoint_url)
    say(api.publish(dataset, table, mode=mode, tag=tag, partition=values or None, split=split, storage=storage))


@data.command()
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
    place = Place.of_source(path, storage_of(endpoint_url, region=region, anonymous=anonymous))
    count = None if tokenizer is None else _token_counter(tokenizer)
    found = inspect_source(place.fs, place.root, source, num_examples=show, count_tokens=count)
    say(json_of(found) if as_json else render(found))
    if not found.num_pairs:
        raise typer.Exit(2)
    if found.share_dropped > max_dropped:
        raise typer.Exit(3)


@data.command()
def verify(
    path: Annotated[str, typer.Argument(help="A scored dataset, a subset or an export.", show_default=False)],
    endpoint_url: EndpointUrl = None,
) -> None:
    """Read a dataset whole and check that it is as it was written. Ends with exit code 1 if it is not."""
    from pipeline.data import verify as verification
    from pipeline.data.place import Place

    place = Place.open(path, storage_of(endpoint_url))
    place.check_readable()
    say(verification.verify(place))


def _token_counter(model: str) -> "Callable[[str], int]":
    from pipeline.config import TorchModel
    from pipeline.models.loading import load_tokenizer

    tokenizer = load_tokenizer(TorchModel(model=model))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def storage_of(endpoint_url: str | None, **options: Any) -> "Storage":
    """The storage section that options give. Raises a ConfigError if the URL carries credentials."""
    from pydantic import ValidationError

    from pipeline.config import Storage

    try:
        return Storage(endpoint_url=endpoint_url, **options)
    except ValidationError:
        raise ConfigError("--endpoint-url must not carry credentials; use the AWS variables or a role.") from None
