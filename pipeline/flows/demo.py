"""The whole job on the dataset that ships with alignpot: what `alignpot demo` runs."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.config_file import load_config
from pipeline.demo.run import write_demo
from pipeline.flows.run import run_all


def run_demo(workdir: Path) -> Iterator[str]:
    """Write models, data and a config to `workdir`, then run that config as any other."""
    config = write_demo(workdir)
    yield from run_all(load_config(config))
    yield f"\nThe config of this run: {config}"
