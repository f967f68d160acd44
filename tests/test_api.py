"""The public API as a notebook uses it: the README's examples run, and a call does what the command does."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import pipeline
from pipeline import AlignpotError, compare, export, potential, read_pairs, schema, score, select, self_play
from pipeline.cli import app
from pipeline.demo.run import PAIRS_FILE
from pipeline.errors import ConfigError, FingerprintError, SchemaError

README = (Path(__file__).parents[1] / "README.md").read_text()
NUM_ROWS = 24
SCORES = [field.name for field in schema.SCORE_FIELDS]
SIMPO = {"reward": "columns", "objective": "simpo"}

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Pairs of our own with rewards."""
    pairs = [json.loads(line) for line in PAIRS_FILE.read_text().splitlines()[:NUM_ROWS]]
    return [
        {**{name: pair[name] for name in ("prompt", "chosen", "rejected")},
         "score_chosen": float(index % 7), "score_rejected": float(index % 3)}
        for index, pair in enumerate(pairs)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def policy(tiny_model_dir: Callable[..., Path]) -> str:
    return str(tiny_model_dir("llama", seed=1))


@pytest.fixture(scope="module")
def scored(rows: list[Row], policy: str) -> Any:
    return score(rows, policy=policy, **SIMPO)


@pytest.fixture(scope="module")
def run(rows: list[Row], policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same job as a command: scored/ and subset/."""
    folder = tmp_path_factory.mktemp("command")
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    sections = {
        "source": {"path": str(folder / "rows.parquet")},
        "policy": {"model": policy},
        "reward": {"backend": "columns"},
        "scored": str(folder / "scored"),
        "objective": {"name": "simpo"},
        "metric": {"weight": "auto"},
        "select": {"fraction": 0.4, "per_prompt": 1},
        "output": {"path": str(folder / "subset")},
        "run": {"engine": "plain"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(sections))
    done = CliRunner().invoke(app, ["run", str(folder / "config.yaml")], catch_exceptions=False)
    assert done.exit_code == 0
    return folder


def scores_of(table: pa.Table) -> dict[str, Any]:
    return table.sort_by(schema.ID).select([schema.ID, *SCORES]).to_pydict()


def test_the_public_names_are_these() -> None:
    names = {
        "AlignpotError",
        "audit",
        "calibrate",
        "compare",
        "export",
        "potential",
        "publish",
        "push",
        "read_pairs",
        "score",
    }
    names |= {"prompts", "reward", "select", "self_play"}
    assert {*pipeline.__all__} == names
    assert names <= {*dir(pipeline)}
    assert all(callable(getattr(pipeline, name)) for name in names)
    with pytest.raises(AttributeError, match="scoer"):
        _ = pipeline.scoer


def test_the_examples_of_the_readme_run(rows: list[Row], policy: str, tmp_path: Path) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    code = "\n".join(examples).replace("HuggingFaceTB/SmolLM2-135M-Instruct", policy)
    names: dict[str, Any] = {"rows": rows}
    exec(code.replace("s3://bucket", str(tmp_path)), names)
    assert len(names["train"]) == len(names["subset"]) > 0
    assert names["train"][0]["prompt"][0]["role"] == "user"
    assert names["gaps"].shape == (NUM_ROWS,)
    assert names["pairs"].dropped == {}
    assert (tmp_path / "trl" / "_SUCCESS.json").exists()


@pytest.mark.parametrize("kind", ["datasets", "pandas", "polars", "arrow", "path"])
def test_whatever_the_rows_are_their_scores_are_those_of_the_command(
    kind: str, rows: list[Row], policy: str, run: Path
) -> None:
    table = pa.Table.from_pylist(rows)
    data = {
        "datasets": lambda: datasets.Dataset.from_list(rows),
        "pandas": lambda: pd.DataFrame(rows),
        "polars": lambda: pytest.importorskip("polars").from_arrow(table),
        "arrow": lambda: table,
        "path": lambda: run / "rows.parquet",
    }[kind]()
    parts = pa.concat_tables(pq.read_table(path) for path in sorted((run / "scored" / "parts").glob("*.parquet")))
    found = score(data, policy=policy, **SIMPO)
    assert scores_of(found.to_arrow()) == scores_of(parts)


def test_a_selection_in_memory_is_that_of_the_command(scored: Any, run: Path) -> None:
    subset = select(scored, fraction=0.4, weight="auto", per_prompt=1)
    files = sorted((run / "subset" / "parquet").glob("*.parquet"))
    assert subset.to_arrow().to_pydict() == pa.concat_tables(map(pq.read_table, files)).to_pydict()
    assert subset.report["selection"] == json.loads((run / "subset" / "report.json").read_text())["selection"]
    assert "rows" in str(subset)


def test_a_scored_dataset_is_taken_as_object_path_or_frame(scored: Any, run: Path) -> None:
    frame = scored.to_pandas()
    wanted = select(scored, k=7, objective="simpo").to_arrow()[schema.ID].to_pylist()
    for given in (run / "scored", frame, scored.to_datasets(), scored.to_arrow()):
        assert select(given, k=7, objective="simpo").to_arrow()[schema.ID].to_pylist() == wanted


def test_potential_has_one_number_a_row_in_their_order(scored: Any) -> None:
    table = scored.to_arrow()
    gaps = potential(scored, objective="cpo", beta=0.1)
    assert gaps.dtype == np.float64
    turned = table.take(pa.array(np.arange(len(scored))[::-1]))
    assert potential(turned, objective="cpo", beta=0.1)[::-1].tolist() == gaps.tolist()
    best = {*np.argsort(-gaps, kind="stable")[:5]}
    kept = select(scored, objective="cpo", beta=0.1, k=5).to_arrow()[schema.ID].to_pylist()
    assert {table[schema.ID][int(row)].as_py() for row in best} == {*kept}


def test_a_row_without_a_score_has_none(scored: Any) -> None:
    frame = scored.to_pandas()
    frame.loc[3, "reward_chosen"] = np.nan
    gaps = potential(frame, objective="simpo")
    assert np.flatnonzero(np.isnan(gaps)).tolist() == [3]


def test_metrics_are_compared_by_name_or_section(scored: Any) -> None:
    found = compare(scored, metrics=["potential:weight=2.5", {"name": "explicit"}], fractions=[0.25])
    assert found.metrics == ("potential:weight=2.5", "explicit")
    assert found.num_selected.tolist() == [NUM_ROWS // 4] * 2


def test_pairs_come_with_what_was_left_out(rows: list[Row]) -> None:
    same = {**rows[0], "rejected": rows[0]["chosen"]}
    pairs = read_pairs([*rows, same])
    assert len(pairs) == NUM_ROWS
    assert pairs.dropped == {"source: identical_responses": 1}
    assert pairs.to_pandas().columns.tolist() == ["id", "prompt", "chosen", "rejected", "tools"]


def test_several_sources_and_benchmarks_are_taken_by_a_call(rows: list[Row], tmp_path: Path) -> None:
    halves = [{"name": "old", "path": pd.DataFrame(rows[:10])}, {"name": "new", "path": rows[10:], "limit": 4}]
    mixed = score(sources=halves, reward="columns").to_arrow()
    assert mixed["source_name"].to_pylist() == ["old"] * 10 + ["new"] * 4
    first = next(turn["content"] for turn in reversed(rows[0]["prompt"]) if turn["role"] == "user")
    (tmp_path / "bench.txt").write_text(first + "\n")
    without = read_pairs(rows, decontaminate=[str(tmp_path / "bench.txt")], where="score_chosen < 6")
    assert without.dropped["source: contaminated"] >= 1
    assert without.dropped["source: filtered"] == sum(row["score_chosen"] == 6 for row in rows)


def test_a_loaded_model_scores_as_its_folder(rows: list[Row], policy: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype="float32")
    loaded, named = (score(rows[:8], policy=given, **SIMPO) for given in (model, {"model": policy, "dtype": "float32"}))
    assert scores_of(loaded.to_arrow()) == scores_of(named.to_arrow())


def test_a_kept_path_goes_on_and_refuses_another_model(
    rows: list[Row], policy: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    first = score(rows[:8], policy=policy, path=tmp_path / "scored", **SIMPO)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "scored" / "parts").iterdir()}
    again = score(rows[:8], policy=policy, path=tmp_path / "scored", **SIMPO)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scored" / "parts").iterdir()} == parts
    assert scores_of(again.to_arrow()) == scores_of(first.to_arrow())
    with pytest.raises(FingerprintError, match="policy"):
        score(rows[:8], policy=tiny_model_dir("llama", seed=2), path=tmp_path / "scored", **SIMPO)


def test_a_subset_is_written_and_exported(scored: Any, tmp_path: Path) -> None:
    select(scored, k=9).write(tmp_path / "subset", formats=["parquet"])
    assert "9 rows" in export(tmp_path / "subset", "nemo-rl", tmp_path / "export")
    [file] = (tmp_path / "export" / "data").glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 9


def test_what_is_wrong_is_said_in_one_error(rows: list[Row], scored: Any, policy: str) -> None:
    with pytest.raises(ConfigError, match="did you mean fraction"):
        select(scored, fracton=0.4)
    with pytest.raises(ConfigError, match="wanted a name"):
        score(rows, policy=3, **SIMPO)
    with pytest.raises(ConfigError, match="list of dicts"):
        score(3, policy=policy, **SIMPO)
    with pytest.raises(SchemaError, match="reference"):
        potential(scored, objective="dpo")
    with pytest.raises(AlignpotError, match="path"):
        next(self_play({"rounds": 1}))


@pytest.mark.parametrize(
    "call",
    [
        lambda rows, _: read_pairs(rows, formt="messages"),
        lambda rows, _: read_pairs(rows, storage={"regoin": "x"}),
        lambda _, scored: select(scored, k=3).write("subset", rows_per_fil=4),
        lambda _, scored: export("subset", "trl", "export", storage={"regoin": "x"}),
    ],
)
def test_a_wrong_key_of_any_section_is_our_error_with_the_nearest_one(
    call: Callable[..., Any], rows: list[Row], scored: Any
) -> None:
    with pytest.raises(ConfigError, match=r"did you mean (format|region|rows_per_file)"):
        call(rows, scored)


def test_a_former_selection_decides_in_a_call_as_in_a_command(scored: Any, run: Path, tmp_path: Path) -> None:
    manifest = str(run / "subset2" / "_SUCCESS.json")
    done = CliRunner().invoke(app, ["select", str(run / "config.yaml"), "--set", f"output.path={run}/subset2",
                                    "--set", "select.per_prompt=null"])  # fmt: skip
    assert done.exit_code == 0, done.output
    again = select(run / "scored", metric={"weight": "auto"}, stats_from=manifest)
    files = sorted((run / "subset2" / "parquet").glob("*.parquet"))
    assert again.to_arrow().to_pydict() == pa.concat_tables(map(pq.read_table, files)).to_pydict()
    with pytest.raises(ConfigError, match=r"select\.fraction is 0\.4; this config has 0\.9"):
        select(run / "scored", metric={"weight": "auto"}, stats_from=manifest, fraction=0.9)
    with pytest.raises(ConfigError, match="rows in memory do not name"):
        select(scored.to_arrow(), objective="simpo", metric={"weight": "auto"}, stats_from=manifest)


def test_a_subset_of_other_scores_is_not_taken_for_the_one_that_is_there(scored: Any, tmp_path: Path) -> None:
    frame = scored.to_pandas()
    select(frame, objective="simpo", metric="explicit", k=5).write(tmp_path / "subset")
    frame["reward_chosen"] += 1.0
    moved = select(frame, objective="simpo", metric="explicit", k=5)
    with pytest.raises(FingerprintError, match="scored"):
        moved.write(tmp_path / "subset")


def test_rows_in_memory_that_share_an_id_are_repeats_only_with_equal_scores(scored: Any) -> None:
    table = scored.to_arrow().drop_columns([schema.CONTENT_DIGEST])
    assert (
        select(pa.concat_tables([table, table]), k=5, objective="simpo").report["selection"]["num_ranked"] == NUM_ROWS
    )
    other = table.set_column(
        table.schema.get_field_index(schema.ID), schema.ID, pa.array(["same"] * NUM_ROWS, pa.string())
    )
    with pytest.raises(AlignpotError, match="'same'"):
        select(other, k=5, objective="simpo")
