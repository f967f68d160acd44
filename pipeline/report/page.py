"""The sections of the page, from the JSON report to HTML.

Text of users and their data goes through `shown` (nothing in it acts, none of it is long) and jinja2's autoescape. The
page loads nothing: its Content-Security-Policy allows one style sheet and one script, by their digests.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from pipeline.data.manifest import Manifest, models_of
from pipeline.data.run import Plan
from pipeline.data.sealed import fingerprint_digest
from pipeline.metrics.potential import METRICS
from pipeline.report import charts, words
from pipeline.report.examples import Corner
from pipeline.selection.alternatives import THIS
from pipeline.selection.compare import Comparison
from pipeline.selection.plane import QUADRANTS
from pipeline.selection.report import rule_in_words
from pipeline.shown import shown

_HUB: Final = "hf://datasets/"


def report_page(report: Mapping[str, Any], facts: Mapping[str, Any], corners: Sequence[Corner] = ()) -> str:
    """The page of a selection; the same bytes for the same arguments.

    report: as `report.json` holds it; what an older one lacks is left out. facts: what `about` gives. corners:
    examples, with the text of rows.
    """
    selection = report["selection"]
    plane, candidates = report.get("plane"), report.get("data_map")
    return _page(
        "report.html.jinja",
        report=report,
        selection=selection,
        rule=rule_in_words(selection),
        formula=METRICS[selection["metric"]["name"]].formula,
        about=facts,
        models=_models(facts),
        sources=_sources(facts),
        repeat=_repeat(selection),
        plane=charts.hexagons(plane, "reward", "implicit") if plane else None,
        data_map=charts.hexagons(candidates, "mean", "variance") if candidates else None,
        line=charts.threshold_lines(selection, plane) if plane else [],
        corners=corners,
    )


def about(plan: Plan | Manifest, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a page says of a subset beside its report: models, sources and fingerprints, and no other path."""
    digests = {"scored": plan.fingerprint["scored"], "fingerprint": fingerprint_digest(plan.fingerprint)}
    return {"version": plan.version, **digests, **{name: extra.get(name) for name in ("made_from", "scored_by")}}


def comparison_page(comparison: Comparison) -> str:
    """The page of `alignpot compare`."""
    return _page("compare.html.jinja", compared=comparison.to_dict())


def _page(template: str, **values: Any) -> str:
    style, script = (_file(name) for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _environment().get_template(template).render(style=style, script=script, policy=policy, **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": number, "pct": percent, "shown": shown, "left_out": words.left_out}
    environment.globals |= {"charts": charts, "words": words, "QUADRANTS": QUADRANTS, "THIS": THIS}
    return environment


def _file(name: str) -> str:
    return resources.files("pipeline.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def number(value: float | None) -> str:
    """A number as the page shows it: whole ones in full, others with four digits."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e12 else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share as the page shows it."""
    return "-" if value is None else f"{100 * value:.1f}%"


def _models(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Role, name and version of each model that was run; of a local one the last part of its path."""
    found = []
    for role, scored_by, given in models_of(facts.get("scored_by") or {}, facts.get("made_from") or {}):
        if not isinstance(scored_by, Mapping):
            continue
        name = scored_by.get("name") or _last(given.get("model")) or "scores that the source holds"
        version = scored_by.get("revision") or scored_by.get("weights") or ""
        found.append((role, shown(name, 200), shown(version)))
    return found


def _sources(facts: Mapping[str, Any]) -> list[str]:
    made_from = facts.get("made_from") or {}
    given = [source for source in (made_from.get("source"), *(made_from.get("sources") or ())) if source]
    return [shown(_last(source.get("path")), 200) for source in given if source.get("path")]


def _last(path: Any) -> str:
    """A path of the hub in full, of another its last part."""
    text = str(path or "")
    return text if text.startswith(_HUB) else text.rstrip("/").rpartition("/")[2]


def _repeat(selection: Mapping[str, Any]) -> str:
    """The sections of a config that selects the same rows; what is not set is left out."""
    sections = {
        name: {key: value for key, value in selection[name].items() if value is not None}
        for name in ("objective", "metric", "select")
    }
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=False)
