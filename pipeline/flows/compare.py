"""Compare metrics and fractions on a scored dataset: the passes of a sweep, and one that counts overlaps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline.config import Config, Metric, Objective, Select, parse_config, yaml_value
from pipeline.data.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.flows.select import open_scored
from pipeline.flows.select_engine import passes_for
from pipeline.selection.compare import Comparison, compare, render_comparison
from pipeline.selection.ranking import Query
from pipeline.shown import shown

DEFAULT_FRACTIONS: Final = (0.1, 0.4)
_DEFAULT_METRICS: Final[tuple[str, ...]] = ("potential", "explicit", "implicit", "bees-add", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRequest:
    """What to compare.

    scored: the dataset. metrics: each a name, or name:key=value,key=value with keys of the metric section.
    objective: the same form; empty takes that of the run that scored.
    """

    scored: str
    metrics: Sequence[str] = ()
    fractions: Sequence[float] = DEFAULT_FRACTIONS
    objective: str = ""
    storage: Mapping[str, Any]


def run_compare(request: CompareRequest, *, as_json: bool = False) -> Iterator[str]:
    """The comparison as tables, or as a JSON object.

    Raises:
        AlignpotError: the dataset is not complete, or a metric cannot be computed from it.
    """
    found = compare_scored(request)
    yield json.dumps(found.to_dict()) if as_json else render_comparison(found)


def compare_scored(request: CompareRequest) -> Comparison:
    """Select by every metric and fraction, and compare."""
    config = parse_config({"scored": request.scored, "storage": dict(request.storage)}, where="compare")
    dataset = open_scored(config)
    objective = _objective(request, dataset)
    queries = {
        (f"{name} {fraction}", name): Query(objective=objective, metric=metric, rule=_rule(fraction))
        for name, metric in _metrics(request.metrics, objective, dataset).items()
        for fraction in request.fractions
    }
    with passes_for(config, None) as passes:
        return compare(dataset, {label: (name, query) for (label, name), query in queries.items()}, passes)


def _rule(fraction: float) -> Select:
    try:
        return Select(fraction=fraction)
    except ValidationError:
        raise ConfigError(f"--fraction must be above 0 and at most 1, got {fraction}.") from None


def _objective(request: CompareRequest, dataset: Dataset) -> Objective:
    if request.objective:
        section = _section(request.objective, option="--objective")
    else:
        section = dataset.manifest.config.get("objective") or {}
    config: Config = parse_config({"scored": request.scored, "objective": section}, where="compare")
    return config.objective


def _metrics(given: Sequence[str], objective: Objective, dataset: Dataset) -> dict[str, Metric]:
    if given:
        return {text: _metric(text, objective) for text in given}
    readable = {name: Metric(name=name) for name in _DEFAULT_METRICS}
    if objective.name == "dpo":
        readable["difficulty"] = Metric(name="difficulty")
    empty = _empty_columns(dataset)
    return {name: metric for name, metric in readable.items() if not empty & _columns(metric, objective)}


def _metric(text: str, objective: Objective) -> Metric:
    sections = {"metric": _section(text, option="--metric"), "objective": objective.model_dump(exclude_none=True)}
    return parse_config({"scored": "compare", **sections}, where=f"--metric {shown(text)}").metric


def _section(text: str, *, option: str) -> dict[str, Any]:
    """name:key=value,key=value as a section of the config."""
    name, _, settings = text.partition(":")
    section: dict[str, Any] = {"name": name}
    for setting in filter(None, settings.split(",")):
        key, sign, value = setting.partition("=")
        if not sign:
            raise ConfigError(f"{option} {shown(text)}: wanted name:key=value,key=value, such as potential:weight=2.5.")
        try:
            section[key] = yaml_value(value)
        except ValueError as error:
            raise ConfigError(f"{option} {shown(text)}: the value of {shown(key)} {error}.") from None
    return section


def _columns(metric: Metric, objective: Objective) -> set[str]:
    query = Query(objective=objective, metric=metric, rule=Select(fraction=1.0))
    return set(query.ranker.columns)


def _empty_columns(dataset: Dataset) -> set[str]:
    """Columns without a value in the first rows: of models that were not run."""
    table = next(iter(dataset.tables()), None)
    if table is None:
        return set()
    return {name for name in table.schema.names if not pc.any(pc.is_valid(table.column(name))).as_py()}
