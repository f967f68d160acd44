"""Alerts and dashboard: their queries parse, and name the metrics that the code exports."""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from pipeline.on_ray.metrics import exported_names
from tests.deploy.files import read
from tests.deploy.test_kubernetes import without


def rules() -> list[dict[str, Any]]:
    [group] = read("monitoring/rules.yaml")["groups"]
    return group["rules"]


def dashboard_queries() -> Iterator[str]:
    for panel in read("monitoring/dashboard.json")["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__range", "6h")


def names_in(queries: list[str]) -> set[str]:
    return {name for query in queries for name in re.findall(r"\b(?:ray_)?alignpot[\w:]*", query)}


def test_every_query_parses():
    for query in [rule["expr"] for rule in rules()] + [*dashboard_queries()]:
        promql_parser.parse(query)
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum(rate(ray_alignpot_rows_total[5m])")


def test_dashboard_shows_every_metric_of_the_code_and_no_other():
    assert names_in([*dashboard_queries()]) == exported_names()


def test_alerts_name_metrics_of_the_code_and_rules_above_them():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert names_in([rule["expr"] for rule in rules()]) - recorded <= exported_names()


def test_alerts_say_what_is_wrong():
    for rule in rules():
        assert "record" in rule or {"summary", "description"} <= {*rule["annotations"]}


def test_grafana_knows_every_key_of_the_dashboard():
    given = read("monitoring/dashboard.json")
    known = json.loads(json.dumps(Dashboard.from_json(given), cls=JSONEncoder))
    assert [*without(given, known)] == []
    assert len({panel["id"] for panel in given["panels"]}) == len(given["panels"])
