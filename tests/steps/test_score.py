"""Scoring: the plain loop and Ray Data in every layout give one and the same result; nothing is lost or done twice."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data
import yaml

from pipeline.config import Config, resolved
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import ConfigError, FingerprintError, TooManyDroppedError
from pipeline.steps.dry_run import dry_run, estimate
from pipeline.steps.score import check_dropped, prepare_score, score
from pipeline.steps.work import Stage
from tests.data.fault_proxy import BROKEN, BUSY, LATE, LOSE_ANSWER, RESET, TRUNCATED, faulty
from tests.fixtures_storage import S3Server
from tests.steps.conftest import Ended, make_config, run_all, shuffled, write_jsonl
from tests.steps.scored_data import objects

SCORES = [
    "id",
    "reward_chosen",
    "reward_rejected",
    "policy_logp_chosen",
    "policy_logp_rejected",
    "reference_logp_chosen",
    "reference_logp_rejected",
    "num_tokens_prompt",
    "num_tokens_chosen",
    "num_tokens_rejected",
]


@pytest.fixture(scope="module")
def models(tiny_model_dir: Callable[..., Path], tiny_reward_dir: Path) -> dict:
    """Policy, reference and reward as three tiny models of real classes."""
    return {
        "policy": {"model": str(tiny_model_dir("llama", seed=1)), "dtype": "float32"},
        "reference": {"model": str(tiny_model_dir("llama", seed=2)), "dtype": "float32"},
        "reward": {"backend": "classifier", "model": str(tiny_reward_dir), "dtype": "float32"},
        "objective": {"name": "dpo", "beta": 0.1},
    }


def scores_of(config: Config) -> pa.Table:
    """Raw scores of every scored row, sorted by id."""
    *_, run = prepare_score(config)
    dataset = Dataset.open(run.place)
    return pa.concat_tables(dataset.tables(SCORES)).sort_by("id").combine_chunks()


def selected_ids(config: Config) -> list[str]:
    files = sorted((Path(config.output.path) / "parquet").glob("*.parquet"))
    return sorted(pa.concat_tables([pa.parquet.read_table(f, columns=["id"]) for f in files])["id"].to_pylist())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, pairs: list[dict], models: dict) -> tuple[pa.Table, list[str]]:
    """Scores and selected ids of the plain loop."""
    workdir = tmp_path_factory.mktemp("plain")
    config = make_config(workdir, write_jsonl(workdir / "pairs.jsonl", pairs), **models)
    run_all(config)
    return scores_of(config), selected_ids(config)


@pytest.mark.parametrize(
    ("run", "replicas"),
    [
        ({"engine": "plain", "shard_rows": 7}, 1),
        pytest.param(
            {"engine": "ray", "shard_rows": 30, "placement": "colocated"}, 2, marks=[pytest.mark.ray, pytest.mark.soak]
        ),
        pytest.param(
            {"engine": "ray", "shard_rows": 12, "placement": "colocated"}, 1, marks=[pytest.mark.ray, pytest.mark.slow]
        ),
        pytest.param(
            {"engine": "ray", "shard_rows": 9, "placement": "in_turn", "turn_shards": 2},
            1,
            marks=[pytest.mark.ray, pytest.mark.soak],
        ),
    ],
    ids=["plain-7", "ray-30-colocated-2", "ray-12-colocated-1", "ray-9-in-turn"],
)
def test_layout_does_not_move_a_score_or_the_selection(
    run: dict,
    replicas: int,
    tmp_path: Path,
    pairs: list[dict],
    models: dict,
    expected: tuple[pa.Table, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
):
    if run["engine"] == "ray":
        request.getfixturevalue("local_ray")
    # More shards than that go in waves, each with actors of its own.
    monkeypatch.setattr("pipeline.steps.step.WAVE_SHARDS", 5)
    source = write_jsonl(tmp_path / "pairs.jsonl", shuffled(pairs, seed=replicas))
    sized = {role: {**models[role], "num_cpus": 0.5} for role in ("policy", "reference", "reward")}
    sized["policy"]["replicas"] = replicas
    config = make_config(tmp_path, source, **{**models, **sized, "run": run})
    run_all(config)
    assert scores_of(config).equals(expected[0])
    assert selected_ids(config) == expected[1]


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_pools_overlap_in_time_and_move_no_score(
    tmp_path: Path,
    pairs: list[dict],
    models: dict,
    expected: tuple[pa.Table, list[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    # Shards as few and as small as these are all past the first actor before a slow start of the second is over.
    monkeypatch.setattr(ray.data.DataContext.get_current(), "wait_for_min_actors_s", 120)
    source = write_jsonl(tmp_path / "pairs.jsonl", shuffled(pairs, seed=2))
    sized = {role: {**models[role], "num_cpus": 0.5} for role in ("policy", "reference", "reward")}
    run = {"engine": "ray", "shard_rows": 5}
    config = make_config(tmp_path, source, **{**models, **sized, "run": run})
    summary, _ = score(*prepare_score(config))
    assert scores_of(config).equals(expected[0])
    assert {"read", "tokenise", "reward", "policy", "reference", "commit"} <= set(summary.busy_s)
    assert summary.overlap_s > 0


def test_second_run_scores_nothing_and_needs_no_model_load_whatever_the_speed_settings(
    tmp_path: Path, pairs: list[dict], models: dict, monkeypatch
):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:20])
    config = make_config(tmp_path, source, **models)
    first = run_all(config)

    def refuse(*_: object) -> None:
        raise AssertionError("a finished run must not load a model")

    monkeypatch.setattr("pipeline.models.loading.load_causal_lm", refuse)
    monkeypatch.setattr("pipeline.models.loading.load_classifier", refuse)
    before = {p: p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*")) if p.is_file()}
    second = run_all(config)
    assert "(none now)" in second
    assert "(none now)" not in first
    other = {**models, "policy": {**models["policy"], "replicas": 2, "token_budget": 512, "num_threads": 2}}
    assert "(none now)" in run_all(make_config(tmp_path, source, **other, run={"shard_rows": 3}))
    assert {p: p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*")) if p.is_file()} == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"policy": {"dtype": "bfloat16"}}, "policy.dtype"),
        ({"tokens": {"max_length": 77}}, "tokens.max_length"),
        ({"reward": {"max_length": 77}}, "reward.max_length"),
    ],
)
def test_other_numbers_on_the_same_output_are_refused(
    change: dict, field: str, tmp_path: Path, pairs: list[dict], models: dict
):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:8])
    prepare_score(make_config(tmp_path, source, **models))
    changed = {**models, **{name: {**models.get(name, {}), **section} for name, section in change.items()}}
    with pytest.raises(FingerprintError, match=field.replace(".", r"\.")):
        prepare_score(make_config(tmp_path, source, **changed))


def test_changed_input_on_the_same_output_is_refused(tmp_path: Path, pairs: list[dict], models: dict):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:8])
    prepare_score(make_config(tmp_path, source, **models))
    write_jsonl(source, pairs[:9])
    with pytest.raises(FingerprintError, match=r"pairs\.jsonl"):
        prepare_score(make_config(tmp_path, source, **models))


def test_every_row_is_scored_or_dropped_with_a_reason(tmp_path: Path, pairs: list[dict], models: dict):
    message = [{"role": "assistant", "content": "The same answer."}]
    bad = [
        {**pairs[0], "id": "same", "chosen": message, "rejected": message},
        {**pairs[1], "id": "empty", "chosen": [{"role": "assistant", "content": "  "}]},
        {**pairs[2], "id": "null", "rejected": None},
        {**pairs[3], "id": "long", "prompt": [{"role": "user", "content": "word " * 400}]},
    ]
    source = write_jsonl(tmp_path / "pairs.jsonl", [*pairs[:20], *bad])
    config = make_config(tmp_path, source, **models, tokens={"max_length": 300}, run={"max_dropped": 0.1})
    _, manifest = score(*prepare_score(config))
    assert manifest.num_rows == 24 == manifest.num_kept + manifest.num_dropped
    assert manifest.drops_by_reason["source: identical_responses"] == 1
    assert manifest.drops_by_reason["source: empty_response"] == 1
    assert manifest.drops_by_reason["source: null_field"] == 1
    assert manifest.drops_by_reason["tokenise: prompt_too_long"] == 1
    with pytest.raises(TooManyDroppedError, match=r"4 of 24 rows.*identical_responses: 1") as error:
        check_dropped(config, manifest)
    assert error.value.exit_code == 3


class HidesItsErrors:
    """A stage that is terminated on its second shard, in code that lets no exception out."""

    def __call__(self, table: pa.Table) -> pa.Table:
        if table.column("source_row")[0].as_py() == 4:
            with contextlib.suppress(Exception):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
        return table


def test_sigterm_that_a_library_swallows_ends_the_run_after_the_shard(
    tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
):
    stage = Stage(name="tokenise", build=HidesItsErrors)
    monkeypatch.setattr("pipeline.steps.score.score_stages", lambda config: [stage])
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:12])
    config = make_config(tmp_path, source, metric={"name": "random"}, run={"shard_rows": 4})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(resolved(config)))
    ended = command("score", path)
    assert (ended.code, "terminated by SIGTERM" in ended.err) == (75, True)
    assert len(list((tmp_path / "scored/parts").glob("*.parquet"))) == 2
    assert command("score", path).code == 0


def test_further_sigterms_do_not_turn_an_orderly_end_into_a_crash(tmp_path: Path, pairs: list[dict]):
    rows = [{**pair, "id": f"{pair['id']}-{copy}"} for copy in range(10) for pair in pairs]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    config = make_config(tmp_path, source, metric={"name": "random"}, run={"shard_rows": 1})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(resolved(config)))
    words = [sys.executable, "-m", "pipeline.cli", "score", str(path)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    while process.poll() is None and not (tmp_path / "scored" / "parts").exists():
        time.sleep(0.01)
    for _ in range(3):
        process.terminate()
        time.sleep(0.02)
    log = process.communicate(timeout=60)[1]
    assert (process.returncode, log.count("terminated by SIGTERM"), "Traceback" in log) == (75, 1, False), log


def test_dry_run_says_what_the_run_takes_and_writes_nothing(tmp_path: Path, pairs: list[dict], models: dict):
    # Not above: workers of Ray that unpickle a stage of test_faults import this module, each for seconds.
    from transformers import AutoModelForCausalLM

    rows = [*pairs, {**pairs[0], "id": "same", "rejected": pairs[0]["chosen"]}]
    config = make_config(tmp_path, write_jsonl(tmp_path / "pairs.jsonl", rows), **models)
    cost = estimate(config, select=True)
    assert not any((tmp_path / place).exists() for place in ("scored", "subset"))
    run_all(config)
    dataset = Dataset.open(Place.open(config.scored, config.storage))
    assert (cost.num_rows, cost.num_left, cost.num_sampled) == (len(rows),) * 3
    assert sum(cost.dropped.values()) == dataset.manifest.num_dropped == 1
    scores = scores_of(config)
    counted = sum(sum(scores[f"num_tokens_{part}"].to_pylist()) for part in ("prompt", "chosen", "rejected"))
    policy = {model.role: model for model in cost.models}["policy"]
    assert 0.8 * counted < policy.tokens <= 0.9 * counted  # what answers of a prompt begin with is read once
    loaded = AutoModelForCausalLM.from_pretrained(config.policy.model)
    assert policy.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    left = estimate(config, select=True)
    assert (left.num_left, left.models[0].tokens) == (0, 0)
    bad = make_config(tmp_path, write_jsonl(tmp_path / "bad.jsonl", rows[-1:]), scored=str(tmp_path / "b"), **models)
    with pytest.raises(TooManyDroppedError, match="100% of the first 1 rows"):
        list(dry_run(bad, select=False))


@pytest.mark.parametrize(
    ("free", "run", "layout"),
    [
        ([], {}, "colocated (all models at once, in one process)."),
        ([3_000_000_000], {}, "colocated (all models at once, in one process; weights: reward 0.0 GB"),
        ([2_700_000_000], {}, "in_turn (one model at a time; weights: reward 0.0 GB, policy 0.0 GB, reference 0.0 GB;"),
        ([2_700_000_000], {"placement": "colocated"}, "colocated"),
        ([2_700_000_000], {"engine": "ray"}, "in_turn"),
        ([3_000_000_000] * 3, {"engine": "ray"}, "pooled"),
        ([3_000_000_000], {"engine": "ray", "address": "nowhere:6379"}, "auto (decided when the run starts"),
    ],
)
def test_dry_run_names_the_layout_by_the_bytes_of_models_and_gpus(
    free, run, layout, tmp_path, pairs, models, monkeypatch
):
    # The tiny models take 2.69 GB each by the estimate: 1.07 of CUDA, 1.61 of logits.
    monkeypatch.setattr("pipeline.steps.placed.free_on_gpus", lambda: free)
    config = make_config(tmp_path, write_jsonl(tmp_path / "pairs.jsonl", pairs[:4]), **models, run=run)
    assert f"\nrun.placement: {layout}" in next(dry_run(config, select=False))


def test_a_model_that_fits_no_gpu_ends_the_run_before_it_loads(tmp_path, pairs, models, monkeypatch):
    monkeypatch.setattr("pipeline.steps.placed.free_on_gpus", lambda: [2_000_000_000])
    config = make_config(tmp_path, write_jsonl(tmp_path / "pairs.jsonl", pairs[:4]), **models)
    scoring = prepare_score(config)
    with pytest.raises(ConfigError, match=r"^reward takes 2\.7 GB of a GPU .* and 2\.0 GB are free"):
        score(*scoring)
    assert not (tmp_path / "scored/parts").exists()


@pytest.mark.slow
@pytest.mark.s3
def test_faults_of_an_object_store_move_no_row(tmp_path: Path, pairs: list[dict], s3: S3Server):
    rows = [{**row, "reward_chosen": float(i % 7), "reward_rejected": 0.5} for i, row in enumerate(pairs)]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    explicit = {"reward": {"backend": "columns"}, "metric": {"name": "explicit"}, "run": {"shard_rows": 10}}
    run_all(make_config(tmp_path, source, **explicit))
    expected = {name: digest for name, digest in objects(tmp_path / "subset").items() if name.startswith("parquet/")}

    # Every third request fails, in each way in turn, and some answers are late.
    writes, others = (
        itertools.cycle([worst, None, None, BUSY, None, None, BROKEN, None, LATE, RESET, None, None])
        for worst in (LOSE_ANSWER, TRUNCATED)
    )
    met: set[str | None] = set()

    def fault(method: str, path: str) -> str | None:
        met.add(kind := next(writes if method == "PUT" else others))
        return kind

    place = Place.open(s3.url("source"), s3.storage)
    place.fs.pipe_file(f"{place.root}/pairs.jsonl", source.read_bytes())
    with faulty(s3.endpoint_url, fault) as endpoint_url:
        places = {"scored": s3.url("scored"), "output": {"path": s3.url("subset")}}
        storage = {"endpoint_url": endpoint_url, "region": "us-east-1"}
        config = make_config(tmp_path, f"s3://{place.root}", **explicit, **places, storage=storage)
        run_all(config)
        assert "(none now)" in run_all(config)
    assert met == {None, BUSY, BROKEN, RESET, LOSE_ANSWER, TRUNCATED, LATE}
    assert expected.items() <= objects(config.output.path, s3.storage).items()


def test_log_probs_and_rewards_may_come_from_columns(tmp_path: Path, pairs: list[dict], models: dict, expected):
    """A scored table written out as plain rows and scored by the columns back ends gives the same selection."""
    by_id = {row["id"]: row for row in expected[0].to_pylist()}
    rows = [{**pair, **by_id[pair["id"]]} for pair in pairs]
    columns = {"backend": "columns"}
    config = make_config(
        tmp_path,
        write_jsonl(tmp_path / "scored.jsonl", rows),
        policy=columns,
        reference=columns,
        reward=columns,
        objective=models["objective"],
    )
    run_all(config)
    assert scores_of(config).equals(expected[0])
    assert selected_ids(config) == expected[1]


def test_of_rows_with_one_content_the_same_is_kept_whatever_their_order(tmp_path: Path, pairs: list[dict]):
    rows = [{**row, "reward_chosen": float(i % 7), "reward_rejected": 0.5} for i, row in enumerate(pairs)]
    rows += [{**rows[0], "reward_chosen": 99.0}, {**rows[1], "reward_chosen": -99.0}]
    kept = []
    for name, order in (("forward", rows), ("backward", rows[::-1])):
        source = write_jsonl(tmp_path / f"{name}.jsonl", order)
        explicit = {"reward": {"backend": "columns"}, "metric": {"name": "explicit"}}
        config = make_config(tmp_path / name, source, source={"id_column": None}, **explicit)
        assert "duplicate" in run_all(config)
        kept.append(selected_ids(config))
    assert kept[0] == kept[1]
    assert len(set(kept[0])) == 24


def test_shards_are_large_where_no_model_runs(tmp_path: Path, pairs: list[dict], models: dict):
    source = write_jsonl(tmp_path / "pairs.jsonl", [dict(pairs[0], id=str(n)) for n in range(300)])
    random_only = make_config(tmp_path / "a", source, metric={"name": "random"}, run={"shard_rows": None})
    with_models = make_config(tmp_path / "b", source, **models, run={"shard_rows": None})
    assert [len(prepare_score(config)[-1].plan.shards) for config in (random_only, with_models)] == [1, 2]
