"""What a selection writes: each rule, checked on the written rows against a computation by hand, and bad input."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from pipeline import schema as names
from pipeline.config import Config, Storage
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.steps.select import prepare_select, select_subsets
from tests.steps import scored_data as data
from tests.steps.conftest import Ended

SIDES = (
    (names.CHOSEN, names.REJECTED),
    (names.REWARD_CHOSEN, names.REWARD_REJECTED),
    (names.POLICY_LOGP_CHOSEN, names.POLICY_LOGP_REJECTED),
    (names.REFERENCE_LOGP_CHOSEN, names.REFERENCE_LOGP_REJECTED),
    (names.NUM_TOKENS_CHOSEN, names.NUM_TOKENS_REJECTED),
)


def selected(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The written rows and the selection in the report."""
    [report] = select_subsets(prepare_select(config))
    return data.rows_of(config.output.path), report["selection"]


def ids(rows: list[dict[str, Any]]) -> set[str]:
    return {row[names.ID] for row in rows}


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it is after select.labels: swap."""
    if not data.explicit_of(row) < 0:
        return row
    turned = {**row}
    for chosen, rejected in SIDES:
        turned[chosen], turned[rejected] = row[rejected], row[chosen]
    return turned


def best_first(rows: list[dict[str, Any]], scores: np.ndarray) -> list[dict[str, Any]]:
    """The rows, best first, ties by id."""
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (-scores[i], rows[i][names.ID]))]


def test_swap_exchanges_texts_and_scores_of_contradicted_pairs(scored: str, scored_rows: pa.Table, tmp_path: Path):
    rows, selection = selected(data.select_config(scored, tmp_path / "out", select={"labels": "swap"}))
    source = {row[names.ID]: row for row in data.candidates(scored_rows)}
    ranked, scores = data.potentials([swapped(row) for row in source.values()])
    assert ids(rows) == ids(best_first(ranked, scores)[: math.floor(0.4 * len(ranked))])
    against = {id_ for id_, row in source.items() if data.explicit_of(row) < 0}
    assert selection["num_contradicted"] == len(against)
    assert 0 < len(ids(rows) & against) < len(rows)
    for row in rows:
        wanted = swapped(source[row[names.ID]])
        for name in (*itertools.chain(*SIDES), names.PROMPT, data.TOPIC):
            assert row[name] == wanted[name], name
        assert row[names.MARGIN_EXPLICIT] == pytest.approx(data.explicit_of(wanted))
        assert row[names.MARGIN_EXPLICIT] > 0
        assert row[names.MARGIN_IMPLICIT] == pytest.approx(data.implicit_of(wanted))


def test_drop_leaves_no_contradicted_pair_and_ranks_without_them(scored: str, scored_rows: pa.Table, tmp_path: Path):
    rows, selection = selected(data.select_config(scored, tmp_path / "out", select={"labels": "drop"}))
    source = data.candidates(scored_rows)
    ranked, scores = data.potentials([row for row in source if not data.explicit_of(row) < 0])
    assert ids(rows) == ids(best_first(ranked, scores)[: math.floor(0.4 * len(ranked))])
    assert min(row[names.MARGIN_EXPLICIT] for row in rows) >= 0
    num_against = sum(data.explicit_of(row) < 0 for row in source)
    assert selection["excluded"]["contradicted_by_reward"] == selection["num_contradicted"] == num_against > 0


@pytest.mark.parametrize("limit", [1, 2])
def test_no_prompt_gives_more_rows_than_its_limit(limit: int, scored: str, scored_rows: pa.Table, tmp_path: Path):
    config = data.select_config(scored, tmp_path / "out", select={"per_prompt": limit, "fraction": 0.8})
    rows, selection = selected(config)
    counts: Counter[str] = Counter()
    allowed = []
    ranked, scores = data.potentials(data.candidates(scored_rows))
    for row in best_first(ranked, scores):
        prompt = row[names.PROMPT][0]["content"]
        counts[prompt] += 1
        if counts[prompt] <= limit:
            allowed.append(row)
    assert ids(rows) == ids(allowed[: math.floor(0.8 * len(allowed))])
    assert max(Counter(row[names.PROMPT][0]["content"] for row in rows).values()) == limit
    assert selection["excluded"]["beyond_per_prompt"] == len(ranked) - len(allowed) > 0


def grams(row: dict[str, Any]) -> set[tuple[str, ...]]:
    text = " ".join(turn["content"] for side in (names.PROMPT, names.CHOSEN, names.REJECTED) for turn in row[side])
    words = text.lower().split()
    return set(zip(words, words[1:], words[2:], strict=False))


def jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_of_near_duplicates_the_better_one_is_kept(fraction: float, scored: str, scored_rows: pa.Table, tmp_path: Path):
    chosen = {"deduplicate": "near", "similarity": 0.6, "fraction": fraction}
    rows, selection = selected(data.select_config(scored, tmp_path / "out", select=chosen))
    ranked, scores = data.potentials(data.candidates(scored_rows))
    wanted = math.floor(fraction * len(ranked))
    kept: list[dict[str, Any]] = []
    shingles: list[set[Any]] = []
    num_out = 0
    for row in best_first(ranked, scores):
        own = grams(row)
        if len(kept) < wanted and max((jaccard(own, other) for other in shingles), default=0.0) < 0.6:
            kept.append(row)
            shingles.append(own)
        elif len(kept) < wanted:
            num_out += 1
    assert ids(rows) == ids(kept)
    assert selection["excluded"]["text_of_a_better_row"] == num_out > 0
    pairs = itertools.combinations([grams(row) for row in rows], 2)
    assert max(jaccard(one, other) for one, other in pairs) < 0.6


def test_quotas_are_met_by_the_best_rows_of_each_group(scored: str, scored_rows: pa.Table, tmp_path: Path):
    ranked, scores = data.potentials(data.candidates(scored_rows))
    sizes = Counter(row[data.TOPIC] for row in ranked if row[data.TOPIC])
    k = math.floor(0.3 * sum(sizes.values()))
    even = {name: k // 3 + (i < k % 3) for i, name in enumerate(sorted(sizes))}
    cases = {
        "equal": ({"quotas": "equal", "fraction": 0.3}, even),
        "weights": ({"quotas": {"math": 2, "chat": 0.5}, "k": 50}, {"math": 40, "chat": 10}),
        "all": ({"quotas": "proportional", "fraction": 1.0}, dict(sizes)),
    }
    for name, (rule, quotas) in cases.items():
        config = data.select_config(scored, tmp_path / name, select={"group_by": data.TOPIC, **rule})
        rows, selection = selected(config)
        order = best_first(ranked, scores)
        best = [[row for row in order if row[data.TOPIC] == group][:quota] for group, quota in quotas.items()]
        assert ids(rows) == ids([*itertools.chain(*best)])
        assert Counter(row[data.TOPIC] for row in rows) == quotas
        assert {group: cut["k"] for group, cut in selection["groups"].items()} == quotas
        assert selection["excluded"]["group_null"] == sum(row[data.TOPIC] is None for row in ranked) > 0
        assert selection["excluded"]["group_without_quota"] == (sizes["code"] if name == "weights" else 0)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"labels": "drop"},
        {"labels": "swap", "per_prompt": 2},
        {"min_score": -0.3, "max_score": 2.0},
        {"group_by": data.TOPIC, "quotas": {"math": 1}, "k": 5, "per_prompt": 1},
        {"deduplicate": "exact", "group_by": data.TOPIC, "fraction": 0.9, "labels": "drop", "min_score": -2},
    ],
    ids=str,
)
def test_counts_of_the_report_add_up(rule: dict[str, Any], scored: str, scored_rows: pa.Table, tmp_path: Path):
    rows, selection = selected(data.select_config(scored, tmp_path / "out", select=rule))
    num_kept = sum(status == names.KEPT for status in scored_rows[names.STATUS].to_pylist())
    excluded = selection["excluded"]
    before_ranking = {name: count for name, count in excluded.items() if name in (
        "duplicate", "contradicted_by_reward") or "margin" in name}  # fmt: skip
    assert selection["num_rows"] == num_kept == Dataset.open(Place.open(scored, Storage())).manifest.num_kept
    assert excluded["duplicate"] == num_kept - len(data.candidates(scored_rows)) > 0
    assert selection["num_rows"] == selection["num_ranked"] + sum(before_ranking.values())
    after = {name: count for name, count in excluded.items() if name not in before_ranking}
    groups = selection["groups"].values() if selection["groups"] else [selection]
    num_candidates = sum(group["num_candidates"] for group in groups)
    assert selection["num_ranked"] == num_candidates + sum(after.values())
    assert len(rows) == selection["k"] == sum(group["k"] for group in groups) <= num_candidates


FLAT = {names.REWARD_CHOSEN: 1.5, names.REWARD_REJECTED: 0.5}
NO_REFERENCE = {names.REFERENCE_LOGP_CHOSEN: None, names.REFERENCE_LOGP_REJECTED: None}
DROPPED = {names.STATUS: names.DROPPED, names.DROP_STAGE: "tokenise", names.DROP_REASON: "prompt_too_long"}
BAD = {
    "no spread": (FLAT, {}, "DataError", ["no spread", "metric.normalise"]),
    "one row": ({"num_rows": 1}, {"select": {"k": 1}}, "DataError", ["no spread"]),
    "more rows than are left": ({}, {"select": {"k": 390}}, "DataError", ["select.k is 390", "Lower it"]),
    "k beyond the limit per prompt": (
        {}, {"select": {"k": 200, "per_prompt": 1}}, "DataError", ["select.k is 200", "Lower it"],
    ),
    "k beyond what repeats leave": (
        {}, {"select": {"k": 380, "deduplicate": "near"}, "metric": {"name": "random"}}, "DataError", ["select.k"],
    ),
    "fraction 0": ({}, {"select": {"fraction": 0}}, "ConfigError", ["select.fraction", "wanted a number above 0"]),
    "fraction 1.5": ({}, {"select": {"fraction": 1.5}}, "ConfigError", ["select.fraction", "1.5"]),
    "fraction of no row": ({}, {"select": {"fraction": 0.001}}, "DataError", ["no row at all", "Raise it"]),
    "both numbers": ({}, {"select": {"fraction": 0.1, "k": 3}}, "ConfigError", ["exactly one of fraction and k"]),
    "negative weight": ({}, {"metric": {"weight": -1.0}}, "ConfigError", ["metric.weight", "-1.0"]),
    "band turned round": (
        {}, {"select": {"min_score": 2, "max_score": 1}}, "ConfigError", ["min_score 2.0 is above max_score 1.0"],
    ),
    "band without rows": ({}, {"select": {"min_score": 99}}, "DataError", ["select.min_score 99", "report"]),
    "group without rows": (
        {}, {"select": {"group_by": data.TOPIC, "quotas": {"maths": 1}, "k": 9}}, "DataError", ["'maths'", "'math'"],
    ),
    "group too small": (
        {}, {"select": {"group_by": data.TOPIC, "quotas": {"chat": 1}, "k": 300}}, "DataError", ["'chat'", "300 of"],
    ),
    "groups all null": ({data.TOPIC: None}, {"select": {"group_by": data.TOPIC}}, "DataError", ["topic is null"]),
    "group column missing": ({}, {"select": {"group_by": "topics"}}, "SchemaError", ["topics"]),
    "group column of numbers": ({}, {"select": {"group_by": names.REWARD_CHOSEN}}, "DataError", ["double", "text"]),
    "quotas without groups": ({}, {"select": {"quotas": "equal"}}, "ConfigError", ["quotas needs group_by"]),
    "no reference": (NO_REFERENCE, {}, "SchemaError|DataError", ["reference"]),
    "difficulty without dpo": (
        {}, {"metric": {"name": "difficulty"}, "objective": {"name": "simpo"}}, "ConfigError", ["objective.name: dpo"],
    ),
    "all dropped": (DROPPED, {}, "DataError", ["row"]),
    "unknown key": ({}, {"select": {"fractoin": 0.4}}, "ConfigError", ["did you mean fraction?"]),
}  # fmt: skip


def assert_refused(ended: Ended, error: str, parts: list[str], output: Path) -> None:
    """Exit code 2 and one clear line of ours, or two for a config; nothing written."""
    text = ended.err.strip()
    assert ended.code == 2, text
    assert any(f"{kind}: " in text for kind in error.split("|")), text
    for part in parts:
        assert part in text
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if not line.startswith(("INFO", "WARNING"))]) <= 2, text
    assert not [path for path in output.rglob("*") if path.is_file()]
    assert "w1ord" not in text


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_code_2_and_what_to_do(
    case: str, command: Callable[..., Ended], scored: str, scored_rows: pa.Table, tmp_path: Path
):
    columns, changes, error, parts = BAD[case]
    if columns:
        scored = data.write_scored(tmp_path / "scored", Storage(), changed(scored_rows, columns), 50)
    path = data.write_config(tmp_path / "config.yaml", data.sections(scored, tmp_path / "out", **changes))
    assert_refused(command("select", path), error, parts, tmp_path / "out")


def changed(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    """The table with constants in some columns, or with its first rows only."""
    rows = [row for row in table.to_pylist() if row[names.STATUS] == names.KEPT]
    values = {name: value for name, value in columns.items() if name != "num_rows"}
    return pa.Table.from_pylist([{**row, **values} for row in rows][: columns.get("num_rows")], schema=table.schema)


def test_order_and_weights_reach_every_file(scored: str, scored_rows: pa.Table, tmp_path: Path):
    rule = {"order": "score_ascending", "weights": True, "band": {"implicit_abs": [0.1, 0.9]}}
    output = {"rows_per_file": 40, "formats": ["hf", "parquet"]}
    config = data.select_config(scored, tmp_path / "out", select=rule, output=output)
    rows, selection = selected(config)
    scores = [row[names.POTENTIAL] for row in rows]
    assert len(rows) > 100
    assert scores == sorted(scores)
    assert load_from_disk(str(tmp_path / "out" / "hf"))["train"]["weight"][:] == [row["weight"] for row in rows]
    assert sum(row["weight"] for row in rows) == pytest.approx(len(rows))
    assert selection["select"]["order"] == "score_ascending"
    split = data.select_config(
        scored, tmp_path / "split", select={**rule, "split": {"test": 0.3}}, output={"slim": True, "formats": ["hf"]}
    )
    select_subsets(prepare_select(split))
    loaded = load_from_disk(str(tmp_path / "split" / "hf"))
    for name in ("train", "test"):
        assert loaded[name].column_names == ["prompt", "chosen", "rejected", "weight"]
        assert loaded[name]["weight"][:] == sorted(loaded[name]["weight"])  # they rise with the score
    folders = data.select_config(
        scored, tmp_path / "folders", select=rule, output={"partition_by": data.TOPIC, "formats": ["parquet"]}
    )
    select_subsets(prepare_select(folders))
    files = sorted((tmp_path / "folders" / "parquet").rglob("*.parquet"))
    assert {file.parent.name for file in files} > {f"{data.TOPIC}=math", f"{data.TOPIC}=code"}
    for file in files:
        of_file = pq.ParquetFile(file).read([names.POTENTIAL]).column(0).to_pylist()
        assert of_file == sorted(of_file)
