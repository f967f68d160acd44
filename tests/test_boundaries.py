"""Who may import what, seen from fresh processes: light commands stay light, one folder knows Ray."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

PACKAGE = Path(pipeline.__file__).parent
HEAVY = {"ray", "torch", "transformers", "vllm", "datasets", "peft", "openlineage", "deltalake", "lance", "pyiceberg"}
LAYERS = [  # imports go down only: a module may import its own layer and those below it
    {"cli"},
    {"cli_cluster", "cli_data", "cli_reference"},
    {"cli_options"},
    {"demo"},
    {"api", "commands", "doctor", "results"},
    {"selfplay"},
    {"on_ray", "steps"},
    {"exports", "observers", "report", "training"},
    {"selection"},
    {"rewards"},
    {"data", "models"},
    {"sources"},
    {"config"},
    {"metrics"},
    {"frames", "scratch", "where", "words"},
    {"faults", "drops", "progress", "schema", "termination"},
    {"errors"},
    {"shown"},
]
LIGHT = [
    "",
    ".config",
    ".schema",
    ".errors",
    ".shown",
    ".progress",
    ".scratch",
    ".where",
    ".words",
    ".termination",
    ".cli",
    ".cli_cluster",
    ".cli_data",
    ".cli_reference",
    ".doctor",
    ".exports",
    ".report",
    ".metrics",
    ".selection",
    ".sources",
    ".data",
    ".api",
    ".rewards",
    ".commands",
    ".training.precomputed",
]


def modules_below(name: str) -> list[str]:
    path = PACKAGE / name.strip(".")
    if not path.is_dir():
        return [f"pipeline{name}"]
    names = [m.name for m in pkgutil.iter_modules([str(path)])] if name else []
    return [f"pipeline{name}", *(f"pipeline{name}.{m}" for m in names)]


def test_light_modules_load_no_heavy_library():
    modules = [m for name in LIGHT for m in modules_below(name)]
    script = (
        "import importlib, json, sys\n"
        "loaded = {}\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded[name] = sorted({HEAVY!r} & set(sys.modules))\n"
        "print(json.dumps(loaded))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = json.loads(done.stdout)
    assert {name: heavy for name, heavy in loaded.items() if heavy} == {}


def imported_modules(path: Path) -> set[str]:
    """What a module imports when it runs: imports for the type checker alone do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in set(ast.walk(tree)) - typing_only:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path):
    layer_of = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = imported_modules(path)
    if own != "on_ray":
        assert not {n for n in names if n == "ray" or n.startswith("ray.")}
    if own in layer_of:
        others = {n.split(".")[1] for n in names if n.startswith("pipeline.")} & set(layer_of) - {own}
        assert {o for o in others if layer_of[o] < layer_of[own]} == set()


def test_every_part_of_the_package_has_a_layer():
    parts = {m.name for m in pkgutil.iter_modules([str(PACKAGE)])}
    assert parts == set().union(*LAYERS)


@pytest.mark.soak
def test_the_benchmark_for_gpus_runs_without_what_an_offline_machine_lacks() -> None:
    lacking = ["pydantic", "ray", "s3fs", "vllm"]
    script = f"""
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.split(".")[0] in {lacking} else find(name, *rest)
)
sys.argv = ["bench_gpu", "--tiny", "--pairs", "4", "--cases", "hh", "reward"]
from tests.benchmarks.bench_gpu import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert {"paper", "paper, best batch, sorted"} <= cases["hh"]["ratio"]["alignpot, compiled"].keys()
    assert {"classifier", "classifier, best batch, sorted"} <= cases["reward"]["ratio"]["alignpot"].keys()
