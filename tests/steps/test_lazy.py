"""Lazy scoring from source to subset: as scores of all rows would have it, nothing scored twice, through kills.

And rows of a prompt that the source has apart, scored together.
"""

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import ConfigError, DataError, FingerprintError, IntegrityError, SourceError
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import BLOCK_ROWS, num_step_tokens, sharing_order
from pipeline.steps.dry_run import estimate, render
from pipeline.steps.grouped import as_planned
from pipeline.steps.rows import kept_rows
from pipeline.steps.score import prepare_score, score
from pipeline.steps.score_stages import pair_groups, score_stages
from pipeline.steps.select import prepare_select, select_subsets
from tests.steps.conftest import make_config, run_all, shuffled, write_jsonl

LOGPS = ["policy_logp_chosen", "policy_logp_rejected", "reference_logp_chosen", "reference_logp_rejected"]


@pytest.fixture(scope="module")
def models(tiny_model_dir: Callable[..., Path], tiny_reward_dir: Path) -> dict:
    return {
        "policy": {"model": str(tiny_model_dir("llama", seed=1)), "dtype": "float32"},
        "reference": {"model": str(tiny_model_dir("llama", seed=2)), "dtype": "float32"},
        "reward": {"backend": "classifier", "model": str(tiny_reward_dir), "dtype": "float32"},
        "objective": {"name": "dpo", "beta": 0.1},
        "score": {"lazy": True, "statistics_rows": 8},
    }


@pytest.fixture
def source(tmp_path: Path, pairs: list[dict]) -> Path:
    broken = {**pairs[0], "id": "broken", "chosen": None}
    again = [pairs[3], pairs[7]]
    return write_jsonl(tmp_path / "pairs.jsonl", [*pairs[:40], broken, *again])


def subset_of(config: Config) -> pa.Table:
    assert config.output is not None
    return pq.read_table(f"{config.output.path}/parquet").sort_by("id")


def scored_of(config: Config, **keys) -> pa.Table:
    return Dataset.open(Place.open(config.scored, config.storage)).table(**keys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        {"engine": "plain"},
        pytest.param({"engine": "ray", "placement": "colocated"}, marks=[pytest.mark.ray, pytest.mark.soak]),
    ],
    ids=["plain", "ray"],
)
def test_a_lazy_run_selects_what_all_scores_select_and_scores_no_row_twice(run, tmp_path, source, models, request):
    if run["engine"] == "ray":
        request.getfixturevalue("local_ray")
    every = make_config(tmp_path / "every", source, **models, select={"fraction": 1.0})
    score(*prepare_score(every))
    assert scored_of(every)["scoring_outcome"].to_pylist().count("skipped") == 0
    full = make_config(tmp_path / "full", source, **{**models, "score": {}})
    score(*prepare_score(full))

    rounds = []
    for name, wanted in (("few", 0.05), ("half", 0.5), ("again", 0.1)):
        there = {"scored": str(tmp_path / "lazy/scored"), "output": {"path": str(tmp_path / "lazy" / name)}}
        config = make_config(tmp_path, source, **models, **there, select={"fraction": wanted}, run=run)
        assert "will score fewer rows" in (told := render(estimate(config, select=True), config)) or name != "few"
        assert "% of the forwards of policy and reference are saved" in told or name == "few"
        shown = run_all(config)
        assert "rows skipped" in shown
        expected = make_config(tmp_path, source, **models, scored=every.scored, select={"fraction": wanted},
                               output={"path": str(tmp_path / "expected" / name)})  # fmt: skip
        select_subsets(prepare_select(expected))
        assert subset_of(config).equals(subset_of(expected))
        lazy = scored_of(config)
        is_skipped = pa.compute.equal(lazy["scoring_outcome"], "skipped")
        assert lazy.filter(is_skipped)["policy_logp_chosen"].null_count == pa.compute.sum(is_skipped).as_py()
        scores = {row["id"]: row for row in scored_of(full, columns=["id", *LOGPS]).to_pylist()}
        done = lazy.filter(pa.compute.invert(is_skipped)).select(["id", *LOGPS]).to_pylist()
        assert all(row == scores[row["id"]] for row in done)
        rounds.append(len(done))
    assert rounds[0] < rounds[1] == rounds[2] < 42


def test_a_killed_round_goes_on_as_it_was_planned_whatever_is_wanted_now(tmp_path, source, models, monkeypatch):
    config = make_config(tmp_path, source, **models, select={"fraction": 0.05})
    loaded = []
    load = LogprobEngine.load
    monkeypatch.setattr(LogprobEngine, "load", lambda section: loaded.append(section.model) or load(section))
    score(*prepare_score(config))
    place = tmp_path / "scored"
    rounds = sorted(path.name for path in (place / "rounds").iterdir())
    assert len(rounds) > 1
    assert loaded == [config.policy.model, config.reference.model]  # once for all rounds
    last = place / "rounds" / rounds[-1]
    shutil.rmtree(place / "sealed")
    (last / "_SUCCESS.json").unlink()
    plan = (last / "run.json").read_bytes()
    with pytest.raises(SourceError, match="unfinished lazy run"):
        Dataset.open(Place.open(config.scored, config.storage))

    wider = make_config(tmp_path, source, **models, select={"fraction": 0.5})
    there = {path: path.stat().st_mtime_ns for path in place.rglob("*.parquet")}
    run_all(wider)
    assert (last / "run.json").read_bytes() == plan
    assert there.items() <= {path: path.stat().st_mtime_ns for path in place.rglob("*.parquet")}.items()
    assert len([*(place / "rounds").iterdir()]) > len(rounds)

    lighter = make_config(tmp_path, source, **models, select={"fraction": 0.5}, metric={"weight": 0.9},
                          output={"path": str(tmp_path / "lighter")})  # fmt: skip
    run_all(lighter)
    assert subset_of(lighter).num_rows == subset_of(wider).num_rows
    eager = make_config(tmp_path, source, **{**models, "score": {}})
    with pytest.raises(FingerprintError, match="kind 'lazy'"):
        prepare_score(eager)
    more = make_config(tmp_path, source, **{**models, "score": {}}, select={"fraction": 1.0},
                       output={"path": str(tmp_path / "all")})  # fmt: skip
    with pytest.raises(DataError, match="were skipped by"):
        select_subsets(prepare_select(more))


@pytest.fixture
def by_proxy(models: dict, tiny_model_dir: Callable[..., Path]) -> Callable[[float], dict]:
    """The models for simpo, with a proxy of its own seed."""
    proxy = {"model": str(tiny_model_dir("llama", seed=2)), "dtype": "float32"}
    alone = {**{name: models[name] for name in ("policy", "reward")}, "objective": {"name": "simpo"}}
    return lambda superset: {**alone, "score": {**models["score"], "proxy": {**proxy, "superset": superset}}}


def test_a_proxy_leaves_its_best_rows_to_the_policy_and_the_subset_is_called_approximate(tmp_path, source, by_proxy):
    few = make_config(tmp_path, source, **by_proxy(1.5), select={"fraction": 0.2})
    assert "the subset is approximate" in render(estimate(few, select=True), few)
    shown = run_all(few)
    scored = scored_of(few)
    outcomes = Counter(scored["scoring_outcome"].drop_null().to_pylist())
    wanted = subset_of(few).num_rows
    # The sample, the second of two rows with one id, and the superset as far as it can still be selected.
    assert 0 < outcomes["sampled"] + outcomes["scored"] <= 8 + 4 + math.ceil(1.5 * wanted)
    assert outcomes["passed_over"] > 10
    is_passed = pa.compute.equal(scored["scoring_outcome"], "passed_over")
    assert scored.filter(is_passed)["policy_logp_chosen"].null_count == outcomes["passed_over"]
    place = Place.open(few.scored, few.storage)
    assert Dataset.open(place).manifest.extra["lazy"].items() >= {"approximate": True, **outcomes}.items()
    assert f"{outcomes['passed_over']:,} by score.proxy: a subset of this dataset is approximate" in shown
    assert "rows passed over by score.proxy" in shown
    folder = tmp_path / "subset"
    assert json.loads((folder / "report.json").read_text())["selection"]["approximate"] is True
    assert "The selection is approximate." in (folder / "report.html").read_text()

    proxy = pq.read_table(tmp_path / "scored/proxy/parts")
    assert proxy.num_rows == scored.num_rows - scored["status"].to_pylist().count("dropped")

    # A superset that holds every row: the same ids as without the proxy, under the same statistics, and none twice.
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "scored").rglob("*.parquet")}
    whole = make_config(tmp_path, source, **by_proxy(1000), select={"fraction": 0.2},
                        output={"path": str(tmp_path / "whole")})  # fmt: skip
    run_all(whole)
    assert there.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "scored").rglob("*.parquet")}.items()
    sections = by_proxy(1)
    sections["score"] = {name: value for name, value in sections["score"].items() if name != "proxy"}
    full = make_config(tmp_path / "full", source, **sections, select={"fraction": 0.2})
    shown = run_all(full)
    assert subset_of(whole)["id"].equals(subset_of(full)["id"])
    assert "approximate" not in shown
    assert "approximate" not in json.dumps(json.loads((tmp_path / "whole/report.json").read_text())["selection"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"score": {"lazy": False}}, "score.proxy says which rows score.lazy leaves"),
        ({"objective": {"name": "dpo"}}, "objective dpo reads a reference"),
        ({"select": {"min_score": 0.5}}, "leave out select.min_score"),
    ],
)
def test_a_proxy_is_refused_where_it_cannot_rank(changes, reason, tmp_path, source, models, by_proxy):
    sections = {**by_proxy(2), "reference": models["reference"], "select": {"fraction": 0.2}}
    sections |= {name: {**sections[name], **change} for name, change in changes.items()}
    with pytest.raises(ConfigError, match=reason):
        make_config(tmp_path, source, **sections)


def tokens_run(config: Config) -> int:
    """Tokens that the policy runs for the shards of a plan."""
    config, step, run = prepare_score(config)
    step, tokenise = as_planned(step, run), score_stages(config)[0].build()
    total = 0
    for shard in step.rows.shards(run.plan.shards, range(len(run.plan.shards))):
        table = tokenise(step.rows.reader.read(shard))
        groups = pair_groups(table, kept_rows(table))
        total += num_step_tokens([groups[i] for i in sharing_order(groups)], BLOCK_ROWS)
    return total


@pytest.mark.parametrize(
    "lazy", [{}, pytest.param({"lazy": True, "statistics_rows": 8}, marks=pytest.mark.soak)], ids=["all", "lazy"]
)
def test_rows_of_a_prompt_come_together_and_change_nothing(lazy, tmp_path, pairs, models):
    """Four pairs a prompt, apart from each other: fewer tokens, and the rows, scores and subset that there were."""

    def answer(row: dict, side: str) -> str:
        return row[side][0]["content"][:60]

    rows = [
        {"id": f"{i}-{part}", "prompt": f"{i} {'Read this twice. ' * 30}",
         **{side: answer(pairs[i + 12 * part], side) for side in ("chosen", "rejected")}}
        for i, part in itertools.product(range(12), range(4))
    ]  # fmt: skip
    rows = shuffled([*rows[1:], {**rows[0], "chosen": None}])
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    keys = {**models, "score": lazy, "select": {"fraction": 0.3}}
    apart = make_config(tmp_path / "apart", source, **keys)
    run_all(apart)
    run = {"engine": "plain", "shard_rows": 16, "group_prompts": True}
    together = make_config(tmp_path / "together", source, **keys, run=run)
    assert "rows" in render(estimate(together, select=True), together)
    assert not (tmp_path / "together/scored").exists()
    prepare_score(together)
    assert tokens_run(apart) > 1.5 * tokens_run(together)

    # Whoever goes on with it does what was planned.
    ungrouped = make_config(tmp_path / "together", source, **keys)
    plan = (tmp_path / "together/scored/run.json").read_bytes()
    run_all(ungrouped)
    part = min((tmp_path / "together/scored/parts").iterdir())
    part.unlink()
    (tmp_path / "together/scored/_SUCCESS.json").unlink()
    run_all(together)
    assert (tmp_path / "together/scored/run.json").read_bytes() == plan
    assert part.exists()

    expected, found = (scored_of(config, kept_only=False).sort_by("source_row") for config in (apart, together))
    assert expected["status"].to_pylist().count("dropped") == 1
    assert found.equals(expected)
    assert subset_of(together).equals(subset_of(apart))
    late = make_config(tmp_path / "apart", source, **keys, run=run)
    score(*prepare_score(late))
    assert not (tmp_path / "apart/scored/pairs").exists()

    _, step, begun = prepare_score(together)
    rows, (first, *others) = as_planned(step, begun).rows, begun.plan.shards
    for wrong, problem in ((others, "lack rows"), ([first, *others, first], "are not rows")):
        with pytest.raises(IntegrityError, match=problem):
            rows.check(wrong, begun.place)
