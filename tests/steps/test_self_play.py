"""Self-play from prompts to the next policy: whole rounds, resumed ones, and what is refused before they start."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import parse_self_play
from pipeline.errors import ConfigError, FingerprintError, TooManyDroppedError
from pipeline.selfplay.rounds import self_play
from tests.fixtures_models import tiny_model, tiny_tokenizer
from tests.fixtures_storage import S3Server
from tests.steps.commands import finish, kill_everything, started_until
from tests.steps.conftest import Ended

PROMPTS = Path(__file__).parents[2] / "pipeline" / "demo" / "prompts.jsonl"


def settings(workdir: Path, policy: Path, reward: Path, /, **sections) -> dict:
    """Two rounds on a few prompts, in a plain loop; sections are merged over the defaults here."""
    base = {
        "path": str(workdir / "run"),
        "prompts": {"path": str(PROMPTS), "format": "prompts", "id_column": "id", "limit": 24},
        "policy": {"model": str(policy), "dtype": "float32"},
        "reward": {"backend": "classifier", "model": str(reward), "dtype": "float32"},
        "objective": {"name": "simpo", "beta": 2.0},
        "metric": {"weight": 1.0},
        "select": {"fraction": 0.5},
        "generate": {"engine": "transformers", "num_responses": 3, "max_tokens": 10, "shard_prompts": 6},
        "evolve": None,
        "train": {"learning_rate": 1e-3, "dtype": "float32", "batch_size": 2, "max_steps": 2},
        "evaluate": {"num_prompts": 6},
        "rounds": 2,
        "run": {"engine": "plain", "shard_rows": 6, "max_dropped": 0.5},
    }
    for name, section in sections.items():
        mergeable = isinstance(section, dict) and isinstance(base.get(name), dict)
        base[name] = {**base[name], **section} if mergeable else section
    return base


@pytest.fixture
def tiny(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> Callable[..., dict]:
    """Settings with tiny random models in the test's folder."""
    policy, reward = tiny_model_dir("llama", seed=1), tiny_model_dir("llama", classifier=True, seed=3)

    def make(workdir: Path = tmp_path, /, **sections) -> dict:
        return settings(workdir, policy, reward, **sections)

    return make


def play(config: dict) -> str:
    return "\n".join(self_play(parse_self_play(config)))


def rows(folder: Path) -> list[dict]:
    """Rows of a dataset's parts, dropped ones too, by id."""
    found = [row for path in sorted((folder / "parts").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted(found, key=lambda row: row["id"])


def ids_of(subset: Path) -> list[str]:
    return pa.concat_tables([pq.read_table(p) for p in sorted((subset / "parquet").glob("*"))])["id"].to_pylist()


def report(run: Path, number: int) -> dict:
    (path,) = run.glob(f"round-{number}/training-*/report.json")
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Played:
    """A run of one round that was then asked for a second one."""

    run: Path
    config: dict
    shown: str
    after_one: dict[Path, int]
    """When each file was written that the first round left."""


def written(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Callable[..., Path]) -> Played:
    work = tmp_path_factory.mktemp("played")
    policy, reward = tiny_model_dir("llama", seed=1), tiny_model_dir("llama", classifier=True, seed=3)
    play(settings(work, policy, reward, rounds=1))
    after_one = written(work / "run")
    config = settings(work, policy, reward)
    return Played(run=work / "run", config=config, shown=play(config), after_one=after_one)


@pytest.mark.slow
def test_two_rounds_end_with_a_policy_that_was_trained_on_the_selected_pairs(played: Played):
    first, second = report(played.run, 1), report(played.run, 2)
    assert f"policy: {second['training']['policy']}" in played.shown
    weights = [Path(each["training"]["policy"]) / "model.safetensors" for each in (first, second)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    assert first["training"]["summary"]["rows"] == len(ids_of(played.run / "round-1/base/subset")) > 0
    assert first["evaluation"]["num_prompts"] + first["evaluation"]["num_unscored"] == 6
    assert first["margins"]["implicit_before"] != first["margins"]["implicit_after"]


@pytest.mark.slow
def test_every_prompt_is_trained_on_or_held_out_and_accounted_for_in_every_step(played: Played):
    held_out, others = (rows(played.run / name) for name in ("held_out", "prompts"))
    assert {row["id"] for row in [*held_out, *others]} == {
        json.loads(line)["id"] for line in PROMPTS.read_text().splitlines()
    }
    given = {row["id"] for row in others if row["status"] == "kept"}
    assert len(held_out) == 6
    assert len(given) <= 18
    assert {row["drop_reason"] for row in others if row["id"] not in given} <= {"beyond_limit", "near_held_out"}
    assert not {row["id"] for row in held_out} & given
    base = played.run / "round-1/base"
    assert {row["id"] for row in rows(base / "candidates")} == given
    answered = {row["id"] for row in rows(base / "candidates") if row["status"] == "kept"}
    assert {row["id"] for row in rows(base / "annotated")} == answered
    judged = {row["id"] for row in rows(base / "annotated") if row["status"] == "kept"}
    assert {row["prompt_id"] for row in rows(base / "pairs")} == judged
    paired = {row["prompt_id"] for row in rows(base / "pairs") if row["status"] == "kept"}
    assert {row["prompt_id"] for row in rows(base / "scored") if row["status"] == "kept"} == paired


@pytest.mark.slow
def test_pairs_are_the_policys_own_answers_and_the_reward_prefers_the_chosen_one(played: Played):
    base = played.run / "round-1/base"
    answers = {row["id"]: row for row in rows(base / "annotated")}
    for pair in (row for row in rows(base / "pairs") if row["status"] == "kept"):
        responses = answers[pair["prompt_id"]]
        by_text = dict(zip(responses["all_generated_responses"], responses["all_rm_scores"], strict=True))
        assert by_text[pair["chosen"][0]["content"]] == pair["reward_chosen"] == max(pair["rewards_all"])
        assert pair["reward_chosen"] > pair["reward_rejected"]


@pytest.mark.slow
def test_a_second_round_adds_to_the_first_and_a_finished_run_is_left_as_it_is(played: Played):
    before = written(played.run)
    assert {path: before[path] for path in played.after_one} == played.after_one
    assert play(played.config) == played.shown
    assert written(played.run) == before


def test_a_round_without_training_makes_a_subset_and_refuses_other_settings(tiny, tmp_path: Path, monkeypatch):
    for name, value in (("TYPE", "file"), ("LOG_FILE_PATH", str(tmp_path / "events")), ("APPEND", "true")):
        monkeypatch.setenv(f"OPENLINEAGE__TRANSPORT__{name}", value)
    shown = play(tiny(rounds=1, train=None))
    ids = ids_of(tmp_path / "run/round-1/base/subset")
    assert ids
    assert "pairs selected" in shown
    start, complete = (json.loads(line) for line in (tmp_path / "events").read_text().splitlines())
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    [subset] = complete["outputs"]
    assert subset["name"] == str(tmp_path / "run/round-1/base/subset")
    assert subset["outputFacets"]["outputStatistics"]["rowCount"] == len(ids)
    # Where a model runs is no other setting; how it answers is.
    assert play(tiny(rounds=1, train=None, generate={"replicas": 2, "num_threads": 2})) == shown
    with pytest.raises(FingerprintError, match=r"generate\.temperature"):
        play(tiny(rounds=1, train=None, generate={"temperature": 0.5}))


def test_more_rounds_without_training_are_refused(tiny):
    with pytest.raises(ConfigError, match="rounds above 1 need a train section"):
        parse_self_play(tiny(rounds=2, train=None))


def test_trained_models_need_a_folder_where_everything_else_is_on_s3(tiny):
    with pytest.raises(ConfigError, match=r"train\.policies"):
        parse_self_play(tiny(path="s3://bucket/run"))


def test_unknown_keys_are_refused_with_the_nearest_one(tiny):
    with pytest.raises(ConfigError, match=r"generate\.num_response.*did you mean num_responses"):
        parse_self_play(tiny(generate={"num_response": 3}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"generate": {"engine_args": {"hf_token": "x"}}}, "must not carry credentials"),
        ({"generate": {"engine_args": {"tensor_parallel_size": 0.5}}}, "whole numbers"),
        ({"train": {"policies": "s3://bucket/policies"}}, "not a URL"),
        ({"train": {"method": "dpo"}}, r"train\.beta"),
        ({"metric": {"name": "difficulty"}}, r"objective\.name: dpo"),
        ({"select": {"group_by": "topic"}}, r"select\.group_by"),
    ],
)
def test_what_a_later_step_would_refuse_is_refused_at_once(tiny, sections: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_self_play(tiny(**sections))


def test_too_many_prompts_without_answers_end_the_run(tiny):
    with pytest.raises(TooManyDroppedError, match="6 of 6 prompts"):
        play(tiny(rounds=1, generate={"max_prompt_tokens": 1}, evaluate={"num_prompts": 6}, run={"max_dropped": 0.5}))


def test_dry_run_counts_the_prompts_that_are_there_and_touches_nothing(
    tiny, tmp_path: Path, command: Callable[..., Ended]
):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny()))
    ended = command("self-play", path, "--dry-run")
    assert ended.code == 0
    assert "GPU-hours" in ended.out
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_dpo_trains_on_the_reference_log_probs_that_were_scored(tiny, tmp_path: Path):
    play(tiny(rounds=1, objective={"name": "dpo", "beta": 0.1}, train={"method": "dpo"}))
    table = pq.read_table(next((tmp_path / "run/round-1/base/subset/parquet").glob("*")))
    assert table["reference_logp_chosen"].null_count == 0
    assert report(tmp_path / "run", 1)["training"]["summary"]["steps"] == 2


@pytest.mark.soak
@pytest.mark.s3
def test_rounds_on_s3_with_policies_in_a_folder(tiny, tmp_path: Path, s3: S3Server):
    storage = s3.storage.model_dump()
    config = tiny(path=s3.url("self-play"), rounds=1, storage=storage, train={"policies": str(tmp_path)})
    shown = play(config)
    assert str(tmp_path / "policies") in shown
    assert play(config) == shown


@pytest.mark.soak
@pytest.mark.ray
def test_ray_and_the_plain_loop_generate_pair_and_select_the_same(tiny, tmp_path: Path, local_ray: None):
    outcomes = []
    for engine, replicas in (("plain", 1), ("ray", 2)):
        work = tmp_path / engine
        generate = {"temperature": 1.5, "replicas": replicas}
        play(tiny(work, rounds=1, train=None, generate=generate, run={"engine": engine}))
        base = work / "run/round-1/base"
        outcomes.append(
            (rows(base / "candidates"), rows(base / "annotated"), rows(base / "pairs"), ids_of(base / "subset"))
        )
    assert outcomes[0] == outcomes[1]


STEPS = [
    "measured-0/candidates/parts/00000000.parquet",
    "round-1/base/candidates/parts/00000001.parquet",
    "round-1/base/pairs/run.json",
    "round-1/evolved/drafts/parts/00000000.parquet",
    "round-1/evolved/scored/parts/00000000.parquet",
    "round-1/training-*/run.json",
    "round-1/training-*/measured/candidates/parts/00000000.parquet",
]


def model_that_ends(folder: Path) -> Path:
    """A tiny random model, one of whose tokens in ten or so ends its response, so that it also writes whole prompts."""
    model, tokenizer = tiny_model("phi", seed=1), tiny_tokenizer()
    model.lm_head.bias[tokenizer.eos_token_id] += 5.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_in_step_after_step_the_run_ends_with_the_same_rows_and_does_nothing_twice(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    models = model_that_ends(tmp_path / "policy"), tiny_model_dir("llama", classifier=True, seed=3)
    small = {"evolve": {"max_tokens": 64, "max_length_ratio": 100}, "generate": {"shard_prompts": 3}, "rounds": 1}
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    for work in (whole, killed):
        work.mkdir()
        (work / "config.yaml").write_text(yaml.safe_dump(settings(work, *models, **small)))
    finish("self-play", whole / "config.yaml")
    done: dict[Path, int] = {}
    for step in STEPS:
        kill_everything(started_until("self-play", killed / "config.yaml", partial(there, killed / "run", step)))
        done |= {
            path: path.stat().st_mtime_ns for path in (killed / "run").rglob("parts/*.parquet") if path not in done
        }
    finish("self-play", killed / "config.yaml")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    first, second = (work / "run/round-1" for work in (whole, killed))
    assert rows(first / "evolved/drafts") == rows(second / "evolved/drafts")
    assert rows(first / "evolved/prompts") == rows(second / "evolved/prompts")
    for part in ("base", "evolved"):
        for step in ("candidates", "annotated", "pairs", "scored"):
            assert rows(first / part / step) == rows(second / part / step) != []
        assert ids_of(first / part / "subset") == ids_of(second / part / "subset") != []
    trained = [next(work.glob("run/round-1/training-*/_SUCCESS.json")) for work in (whole, killed)]
    assert len({json.loads(path.read_text())["extra"]["digest"] for path in trained}) == 1
    assert report(whole / "run", 1)["evaluation"] == report(killed / "run", 1)["evaluation"]


def there(run: Path, pattern: str) -> bool:
    return any(run.glob(pattern))
