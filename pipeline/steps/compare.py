"""Compare metrics and fractions on scored rows: what to compare, from names and sections."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from pipeline import schema
from pipeline.config import Config, Metric, Objective, Select, parse_config, yaml_value
from pipeline.errors import ConfigError
from pipeline.selection.compare import Comparison, compare
from pipeline.selection.ranking import Query
from pipeline.selection.source import Source
from pipeline.shown import shown

_DEFAULT_METRICS: Final[tuple[str, ...]] = ("potential", "explicit", "implicit", "bees-add", "random")


def compare_rows(
    source: Source,
    objective: Objective,
    metrics: Sequence[str | Mapping[str, Any]],
    fractions: Sequence[float],
) -> Comparison:
    """Select by every metric and fraction, and compare.

    metrics: each a name, name:key=value,key=value with keys of the metric section, or the section as a mapping. If it
    is empty, the usual metrics are taken, as far as they can be computed.

    Raises an AlignpotError if a metric is unknown or cannot be computed, or a fraction is out of range.
    """
    queries = {}
    for name, metric in _metrics(metrics, objective, source).items():
        for fraction in fractions:
            try:
                rule = Select(fraction=fraction)
            except ValidationError:
                raise ConfigError(f"a fraction must be above 0 and at most 1, got {fraction}.") from None
            queries[f"{name} {fraction}"] = name, Query(objective=objective, metric=metric, rule=rule)
    return compare(source, queries)


def objective_of(given: str | Mapping[str, Any], scored_config: Mapping[str, Any]) -> Objective:
    """The objective from a name, name:key=value,... or a section; if empty, that of the run that scored.

    Raises a ConfigError if no objective has that name, or it does not take the keys.
    """
    section = _section(given, option="objective") if given else scored_config.get("objective") or {}
    config: Config = parse_config({"scored": "compare", "objective": section}, where="compare")
    return config.objective


def _metrics(given: Sequence[str | Mapping[str, Any]], objective: Objective, source: Source) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for each in given:
        sections = {"metric": _section(each, option="metric"), "objective": objective.model_dump(exclude_none=True)}
        where = f"metric {shown(_label(each))}"
        found[_label(each)] = parse_config({"scored": "compare", **sections}, where=where).metric
    if found:
        return found
    readable = {name: Metric(name=name) for name in _DEFAULT_METRICS}
    if objective.name == "dpo":
        readable["difficulty"] = Metric(name="difficulty")
    rule = Select(fraction=1.0)
    queries = {n: Query(objective=objective, metric=m, rule=rule).on(source.schema) for n, m in readable.items()}
    columns = {name: query.ranker.columns for name, query in queries.items()}
    there = {name for of_one in columns.values() for name in of_one if name in source.schema.names}
    filled = {name for name in there if source.has_values(name)}
    for name in schema.judged_rewards(source.schema.names):
        filled |= {*schema.reward_columns(name)} if all(map(source.has_values, schema.lead_columns(name))) else set()
    return {name: metric for name, metric in readable.items() if filled >= {*columns[name]}}


def _label(given: str | Mapping[str, Any]) -> str:
    if isinstance(given, str):
        return given
    settings = ",".join(f"{key}={value}" for key, value in given.items() if key != "name")
    name = str(given.get("name", "potential"))
    return f"{name}:{settings}" if settings else name


def _section(given: str | Mapping[str, Any], *, option: str) -> dict[str, Any]:
    """name:key=value,key=value as a section of the config."""
    if not isinstance(given, str):
        return dict(given)
    name, _, settings = given.partition(":")
    section: dict[str, Any] = {"name": name}
    for setting in filter(None, settings.split(",")):
        key, sign, value = setting.partition("=")
        if not sign:
            raise ConfigError(
                f"{option} {shown(given)}: wanted name:key=value,key=value, such as potential:weight=2.5."
            )
        try:
            section[key] = yaml_value(value)
        except ValueError as error:
            raise ConfigError(f"{option} {shown(given)}: the value of {shown(key)} {error}.") from None
    return section
