"""A local Ray, tiny models and small sources for the flow tests."""

import dataclasses
import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from pipeline import cli
from pipeline import commands as run
from pipeline.config import Config, Storage, parse_config
from tests.fixtures_storage import S3Server
from tests.steps import scored_data

PAIRS = Path(__file__).parents[2] / "pipeline" / "demo" / "pairs.jsonl"


@pytest.fixture(scope="session", autouse=True)
def ray_ends_with_the_session() -> Iterator[None]:
    """Whatever Ray is up after the last test is shut down."""
    yield
    ray.shutdown()


@pytest.fixture
def local_ray(s3: S3Server) -> None:
    """One local Ray for all flow tests, with as many logical CPUs as the largest of their pools need together.

    It starts after the S3 server, whose credentials its workers inherit, and again after a test that took it down.
    """
    del s3
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=6, include_dashboard=False, logging_level="ERROR")


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    """Sixty pairs of our own sample data."""
    return [json.loads(line) for line in PAIRS.read_text().splitlines()[:60]]


@pytest.fixture(scope="session")
def tiny_reward_dir(tiny_model_dir: Callable[..., Path]) -> Path:
    """A tiny random sequence classifier with one logit."""
    return tiny_model_dir("llama", classifier=True, seed=3)


@pytest.fixture(scope="session")
def scored_rows() -> pa.Table:
    """Four hundred scored rows with all that selection has to deal with."""
    return scored_data.scored_table()


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, scored_rows: pa.Table) -> str:
    """These rows as a scored dataset on local disk, in parts of 80."""
    return scored_data.write_scored(tmp_path_factory.mktemp("scored") / "data", Storage(), scored_rows, 80)


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """Runs a command line of `alignpot` in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*argv: str | Path) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(arg) for arg in argv])
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, before)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shuffled(rows: list[dict], seed: int = 0) -> list[dict]:
    return random.Random(seed).sample(rows, len(rows))


def run_all(config: Config) -> str:
    """The whole job; everything it prints."""
    return "\n".join(run.run_all(config))


def make_config(workdir: Path, path: Path | str, /, **sections) -> Config:
    """A config with everything in `workdir`; sections are merged over the defaults here."""
    base = {
        "source": {"path": str(path), "id_column": "id"},
        "scored": str(workdir / "scored"),
        "select": {"fraction": 0.4},
        "output": {"path": str(workdir / "subset")},
        "run": {"engine": "plain", "shard_rows": 16},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return parse_config(base)
