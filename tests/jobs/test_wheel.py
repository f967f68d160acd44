"""What is no part of the product stays out of the wheel."""

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_the_package_alone() -> None:
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    found = find_packages(str(ROOT), **find)
    assert {name.partition(".")[0] for name in found} == {"pipeline"}
    assert "pipeline.demo" in found
    assert not {name for name in found if "study" in name or "demo_data" in name}
