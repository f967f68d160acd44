"""The README says what the code does: keys, formats, make targets, commands and configs it names are there."""

import importlib
import re
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from pipeline import config
from pipeline.cli import app
from pipeline.config import parse_config, parse_self_play
from pipeline.exports.formats import FORMATS as EXPORTS
from pipeline.sources.formats import FORMATS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REFERENCE = README.split("## Config")[1].split("\n## ")[0]
MODEL_SECTIONS = {"policy": config.TorchModel, "reference": config.TorchModel, "reward": config.ClassifierReward}


def sections() -> dict[str, type[BaseModel]]:
    plain = {
        name: getattr(config, name.capitalize())
        for name in ("source", "storage", "tokens", "objective", "metric", "select", "output", "run")
    }
    return {**plain, **MODEL_SECTIONS}


@pytest.mark.parametrize("section", sorted(sections()))
def test_every_key_is_in_the_config_reference(section: str):
    keys = set(re.findall(r"[a-z_][a-z0-9_]*", REFERENCE))
    assert set(sections()[section].model_fields) <= keys
    assert section in keys


def test_every_section_is_known_here():
    assert set(sections()) | {"scored", "preset", "sweep"} == set(config.Config.model_fields)


def self_play_keys() -> set[str]:
    own = config.SelfPlayConfig.model_fields.items()
    names = {"prompts", "generate", "pair", "evolve", "train", "evaluate", "estimate"}
    kinds = {name: (typing.get_args(field.annotation) or (field.annotation,))[0] for name, field in own}
    return {"path", "rounds", *names} | {key for name in names for key in kinds[name].model_fields}


def test_every_key_of_self_play_is_in_the_config_reference():
    assert self_play_keys() <= set(re.findall(r"[a-z_]+", REFERENCE))


def test_every_export_is_listed():
    listed = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`[^|]*) \|", README, re.MULTILINE))))
    assert set(EXPORTS) <= listed


def test_every_format_is_listed():
    assert set(FORMATS) <= set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))


def test_example_config_parses():
    example, play = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert parse_config(yaml.safe_load(example)).select is not None
    assert parse_self_play(yaml.safe_load(play)).train is not None


def test_commands_exist():
    shell = "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    commands = set(re.findall(r"^alignpot ([\w-]+)", shell, re.MULTILINE))
    assert {"inspect", "run", "select", "submit", "self-play", "export"} <= commands
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\b((?:deploy|jobs|pipeline|tests)/[\w./-]*\w)", README):
        assert (ROOT / path).exists(), path


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z_]+@", README)


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")))
def test_every_benchmark_has_a_target_and_fits_the_code(module: str):
    assert f"-m tests.benchmarks.{module}" in (ROOT / "Makefile").read_text()
    assert callable(importlib.import_module(f"tests.benchmarks.{module}").main)
