"""The pages say what the code does: what they name is there, and the README's commands run as they are written."""

import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import parse_config, parse_self_play
from pipeline.demo.run import PAIRS_FILE, PROMPTS_FILE
from pipeline.exports.formats import FORMATS as EXPORTS
from pipeline.metrics import METRICS, OBJECTIVES
from pipeline.sources.formats import table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GENERATED = {ROOT / "jobs" / "CONFIG.md"}
FOLDERS = ("", "deploy", "deploy/*", "jobs", "pipeline", "pipeline/*", "tests/benchmarks")
PAGES = sorted({page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md".lstrip("/"))} - GENERATED)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|txt|safetensors))|[\w.-]+(?:/[\w.-]+)+\.yaml")
MODEL, REWARD_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct", "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
MOST_WORDS = 1800

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of every `alignpot ...` and `make ...` on a page."""
    shell = "".join(blocks(page.read_text(), "bash")).replace("\\\n", " ")
    for line in [*shell.splitlines(), *code_spans(page)]:
        if line.startswith(("alignpot ", "make ")):
            yield shlex.split(line, comments=True)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short():
    assert len(README.split()) <= MOST_WORDS


@pages
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_files_that_a_page_names_are_there(page: Path):
    named = {span for span in code_spans(page) if PATH.fullmatch(span) and not span.startswith("-")}
    assert {name for name in named if not any((folder / name).exists() for folder in (page.parent, ROOT))} == set()


@pages
def test_commands_and_options_that_a_page_names_are_there(page: Path):
    commands = typer.main.get_command(app)
    assert isinstance(commands, click.Group) or hasattr(commands, "commands")
    makefile = (ROOT / "Makefile").read_text()
    for program, *words in command_lines(page):
        name = next((word for word in words if not word.startswith("--")), None)
        if program == "make":
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
            continue
        asked = [commands, *([] if name is None else [commands.commands[name]])]  # options may stand before the command
        parameters = [parameter for command in asked for parameter in command.params]
        known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, name


def test_examples_of_self_play_parse():
    pages_of_it = (README, (ROOT / "pipeline" / "selfplay" / "README.md").read_text())
    for page, index in zip(pages_of_it, (1, 0), strict=True):
        assert parse_self_play(yaml.safe_load(blocks(page, "yaml")[index])).train is not None


def test_sweep_of_the_page_on_selection_parses():
    [sweep] = blocks((ROOT / "pipeline" / "selection" / "README.md").read_text(), "yaml")
    rest = {"scored": "scored", "select": {"fraction": 0.4}, "output": {"path": "subset"}}
    assert len(parse_config({**rest, **yaml.safe_load(sweep)}).variants()) == 2


def test_exports_and_metrics_are_all_listed():
    for folder, wanted in (("exports", EXPORTS), ("selection", METRICS)):
        names = re.findall(r"^\| (`[^|]*) \|", (ROOT / "pipeline" / folder / "README.md").read_text(), re.MULTILINE)
        assert {*wanted} <= {*re.findall(r"`([a-z-]+)`", "".join(names))}, folder
    assert f"{len(OBJECTIVES)} training objectives, {len(METRICS)} metrics" in README


def test_page_on_sources_has_the_table_that_the_formats_make():
    page = (ROOT / "pipeline" / "sources" / "README.md").read_text()
    assert table() in page, f"put this into pipeline/sources/README.md:\n{table()}"
    assert table(short=True) in README, f"put this into README.md:\n{table(short=True)}"


def test_figures_of_the_readme_stand_in_the_results():
    table = README.split("## Measured")[1].split("## Read on")[0]
    cells = [cell for line in table.splitlines() if line.startswith("|") for cell in line.split("|")[2:]]
    results = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text()
    figures = {figure for cell in cells for figure in re.findall(r"\d[\d.,]*\d", cell)}
    assert len(figures) > 10
    assert {figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}", results)} == set()


@pages
def test_extras_that_a_page_names_are_there(page: Path):
    named = {name for extras in re.findall(r"'\.\[([\w,]+)\]'", page.read_text()) for name in extras.split(",")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert named <= {*project["optional-dependencies"]}


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z_]+@", README)


def test_commands_of_the_readme_run(tmp_path: Path, tiny_model_dir: Callable[..., Path]):
    (tmp_path / "prefs").mkdir()
    pairs = [json.loads(line) for line in PAIRS_FILE.read_text().splitlines()[:60]]
    rewards = [{"score_chosen": 1.0 + index % 7, "score_rejected": 0.5 * (index % 3)} for index in range(len(pairs))]
    lines = [json.dumps({**pair, **scores}) for pair, scores in zip(pairs, rewards, strict=True)]
    (tmp_path / "prefs" / "pairs.jsonl").write_text("\n".join(lines))
    config = blocks(README, "yaml")[0].replace("s3://bucket", str(tmp_path)).replace(MODEL, str(tiny_model_dir()))
    (tmp_path / "config.yaml").write_text(f"{config}run: {{engine: plain}}\n")
    written = [words for words in command_lines(ROOT / "README.md") if words[1] not in ("submit", "self-play")]
    ran = [words[1:] for words in written if words[0] == "alignpot" and len(words) > 2]
    assert [words[0] for words in ran] == [
        *("inspect", "run", "run", "select", "compare", "export", "publish", "doctor"),
    ]
    for words in ran:
        places = {"config.yaml": str(tmp_path / "config.yaml")}
        arguments = [places.get(word, word).replace("s3://bucket", str(tmp_path)) for word in words]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, words
    assert len(list((tmp_path / "train" / "data").glob("*.jsonl"))) == 1
    assert json.loads((tmp_path / "smaller" / "_SUCCESS.json").read_text())["num_rows"] == 20


def test_dry_run_of_the_readme_runs(tmp_path: Path, tiny_model_dir: Callable[..., Path]):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "prompts.jsonl").write_text(PROMPTS_FILE.read_text())
    models = {MODEL: tiny_model_dir(), REWARD_MODEL: tiny_model_dir(classifier=True), "s3://bucket": tmp_path}
    config = blocks(README, "yaml")[1].replace("/shared/play/", f"{tmp_path}/play/")
    for name, here in models.items():
        config = config.replace(name, str(here))
    (tmp_path / "play.yaml").write_text(config)
    done = CliRunner().invoke(app, ["self-play", str(tmp_path / "play.yaml"), "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "GPU" in done.stdout


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")))
def test_every_benchmark_has_a_target_and_fits_the_code(module: str):
    assert f"-m tests.benchmarks.{module}" in (ROOT / "Makefile").read_text()
    assert callable(importlib.import_module(f"tests.benchmarks.{module}").main)
