"""The commands around a cluster: doctor, which looks before, and submit, status, logs and stop for jobs."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import Address, ConfigPath, Overrides, say

cluster = typer.Typer()

Job = Annotated[
    str, typer.Argument(metavar="CONFIG.yaml|JOB_ID", help="The config as submitted, or an id.", show_default=False)
]


@cluster.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="What it is to work for.")] = None,
    overrides: Overrides = None,
    address: Address = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check this machine and what a config needs: versions, memory, Ray, stores, models, tokens. Ends with exit code 1
    if anything is bad, and with 2 if the config is.
    """
    from pipeline.doctor.examine import examine

    raise typer.Exit(examine(config, overrides or (), address=address, as_json=as_json, echo=say))


@cluster.command()
def submit(
    job: Annotated[str, typer.Argument(help="run, score, select, reward, self-play or doctor.", show_default=False)],
    config: ConfigPath,
    address: Address = None,
    overrides: Overrides = None,
    *,
    wait: Annotated[bool, typer.Option(help="Follow the job and end with its exit code.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; submit nothing.")] = False,
) -> None:
    """Submit a job to a Ray cluster through its Job API."""
    from pipeline.on_ray.shipment import prepare_job

    shipment = prepare_job(job, config, overrides or ())
    if dry_run:
        say(shipment.render())
        return
    from pipeline.on_ray.submit import submit_job

    raise typer.Exit(submit_job(shipment, address=address, wait=wait, echo=say))


@cluster.command()
def status(job: Job, address: Address = None, overrides: Overrides = None) -> None:
    """Show how a submitted job stands. Ends with exit code 1 if it failed or was stopped."""
    from pipeline.on_ray.jobs import show_status

    raise typer.Exit(show_status(job, overrides or (), address=address, echo=say))


@cluster.command()
def logs(
    job: Job,
    address: Address = None,
    overrides: Overrides = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until it ends, and end with its exit code.")] = False,
) -> None:
    """Print what a submitted job has printed."""
    from pipeline.on_ray.jobs import show_logs

    raise typer.Exit(show_logs(job, overrides or (), address=address, follow=follow, echo=say))


@cluster.command()
def stop(job: Job, address: Address = None, overrides: Overrides = None) -> None:
    """Stop a submitted job; submitted again, it goes on where it was."""
    from pipeline.on_ray.jobs import stop_job

    raise typer.Exit(stop_job(job, overrides or (), address=address, echo=say))
