"""The jobs on the data and models that ship with alignpot: what `alignpot demo` runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config import load_config, load_self_play
from pipeline.demo.run import DEMO
from pipeline.demo.self_play import SELF_PLAY_DEMO
from pipeline.flows.run import run_all


def run_demo(workdir: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Write models, data and a config to `workdir`, then run that config as any other."""
    config = DEMO.write(workdir)
    yield from run_all(load_config(config, overrides))
    yield f"\nThe config of this run: {config}"


def run_self_play_demo(workdir: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """`run_demo` for self-play."""
    from pipeline.flows.self_play import self_play

    config = SELF_PLAY_DEMO.write(workdir)
    yield from self_play(load_self_play(config, overrides))
    yield f"\nThe config of this run: {config}"
