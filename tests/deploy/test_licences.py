"""Whoever installs alignpot gets packages with permissive licences only, by their own metadata."""

import contextlib
import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.files import ROOT

PERMISSIVE = re.compile(r"\b(MIT|Apache|BSD|0BSD|ISC|PSF|Python Software Foundation|MPL|Mozilla|Unlicense|CC0)\b")
NOT_WANTED = re.compile(r"\b(A?GPL|LGPL|SSPL|BUSL|Proprietary|Commercial|Non-?Commercial)\b", re.IGNORECASE)

SILENT = {"setuptools"}  # MIT, by its licence file


def licence(package: Distribution) -> str:
    """What a package says of its licence: the expression, else classifiers, else the first words of the text."""
    about = package.metadata
    classifiers = [line for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    named = about.get("License-Expression") or " ".join(classifiers) or about.get("License") or ""
    return named[:100]


def installed_with(asked: list[str]) -> dict[str, Distribution]:
    """The packages that these requirements bring on this platform, with all that they need in turn."""
    found: dict[str, Distribution] = {}
    waiting = [(Requirement(each), {""}) for each in asked]
    while waiting:
        requirement, extras = waiting.pop()
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        if name in found or (marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras)):
            continue
        with contextlib.suppress(PackageNotFoundError):  # an optional part that is not installed
            found[name] = distribution(name)
            waiting += [(Requirement(each), {"", *requirement.extras}) for each in found[name].requires or []]
    return found


def test_what_is_installed_with_alignpot_is_permissive():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["tables"], *extras["trainers"]]
    said = {name: licence(package) for name, package in installed_with(asked).items() if name not in SILENT}
    assert len(said) > 60
    assert {name: words for name, words in said.items() if NOT_WANTED.search(words)} == {}
    assert {name: words for name, words in said.items() if not PERMISSIVE.search(words)} == {}
