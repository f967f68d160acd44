"""Several rewards in one run: each is stored raw, and selection alone makes one margin of any of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml

import pipeline
from pipeline.config import ClassifierReward, Config, parse_config
from pipeline.data.dataset import Dataset
from pipeline.errors import FingerprintError, ModelError, SchemaError
from pipeline.models.loading import load_classifier
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from tests.rewards import functions
from tests.steps.conftest import make_config, run_all, write_jsonl

FUNCTION = "tests.rewards.functions"
NUM_PAIRS = 24
PAGE = (Path(__file__).parents[2] / "jobs" / "REWARDS.md").read_text()


@pytest.fixture
def source(tmp_path: Path, pairs: list[dict]) -> Path:
    """Pairs with a reward of their own; that of one row is missing."""
    chance = np.random.default_rng(5)
    rows = [
        {**row, "human": {"good": float(chance.normal(1.0)), "bad": float(chance.normal())}}
        for row in pairs[:NUM_PAIRS]
    ]
    rows[7]["human"]["bad"] = None
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def heads_dir(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("llama", classifier=True, seed=4, num_labels=3)


@pytest.fixture
def config(tmp_path: Path, source: Path, heads_dir: Path) -> Callable[..., Config]:
    def make(name: str = "work", **sections: Any) -> Config:
        columns = {"reward_human_chosen": "human.good", "reward_human_rejected": "human.bad"}
        rewards = {
            "model": {"backend": "classifier", "model": str(heads_dir), "dtype": "float32", "heads": ["a", "b", "c"]},
            "length": {"backend": "function", "function": f"{FUNCTION}:length", "arguments": {"per": 10.0}},
            "human": {"backend": "columns"},
        }
        given = {"rewards": rewards, "metric": {"name": "explicit"}, "run": {"shard_rows": 8}, **sections}
        return make_config(tmp_path / name, source, **{"source": {"columns": columns}, **given})

    return make


def scored(config: Config) -> pa.Table:
    _, step, run = prepare_score(config)
    score(config, step, run)
    return Dataset.open(run.place).table(kept_only=False).sort_by("id")


REWARDS = ("human", "length", "model_a", "model_b", "model_c")


def test_every_reward_is_stored_raw_and_a_row_without_one_of_them_is_dropped(
    config: Callable[..., Config], heads_dir: Path, pairs: list[dict]
) -> None:
    settings = config()
    table = scored(settings)
    columns = [name for name in table.column_names if name.startswith("reward_")]
    assert columns == [f"reward_{name}_{side}" for name in REWARDS for side in ("chosen", "rejected")]
    kept = table.filter(pc.equal(table["status"], "kept"))
    rows = {row["id"]: row for row in pairs[:NUM_PAIRS]}
    [dropped] = table.filter(pc.equal(table["status"], "dropped")).to_pylist()
    assert (dropped["id"], dropped["drop_stage"], dropped["drop_reason"]) == (pairs[7]["id"], "source", "null_score")
    for side in ("chosen", "rejected"):
        words = [rows[id_][side] for id_ in kept["id"].to_pylist()]
        lengths = [len(each if isinstance(each, str) else each[-1]["content"]) / 10 for each in words]
        assert kept[f"reward_length_{side}"].to_pylist() == lengths
    model = load_classifier(ClassifierReward(backend="classifier", model=str(heads_dir), dtype="float32"))
    [tokenise] = [stage for stage in prepare_score(settings)[1].stages if stage.name == "tokenise"]
    ids = tokenise.build()(kept)
    for side in ("chosen", "rejected"):
        dialogues = ids[f"__alignpot_reward_model_{side}_ids"].to_pylist()
        with torch.no_grad():
            wanted = np.array([model(torch.tensor([each])).logits[0].double().numpy() for each in dialogues])
        for head, name in enumerate("abc"):
            np.testing.assert_allclose(kept[f"reward_model_{name}_{side}"].to_numpy(), wanted[:, head], atol=1e-4)


def test_selection_alone_takes_any_rewards_and_any_rule(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = config(metric={"name": "explicit", "combine": "min"})
    assert "reward model_b prefers chosen" in run_all(first)
    rows = Dataset.open(prepare_score(first)[2].place).table()
    margins = {name: rows[f"reward_{name}_chosen"].to_numpy() - rows[f"reward_{name}_rejected"].to_numpy()
               for name in REWARDS}  # fmt: skip
    margins = {name: values / np.sqrt(np.mean(values**2)) for name, values in margins.items()}
    for number, (combine, wanted) in enumerate((
        ("min", np.min([*margins.values()], axis=0)),
        ({"members": ["human", "model_b"]}, (margins["human"] + margins["model_b"]) / 2),
        ({"weights": {"length": -1, "model_a": 2}}, 2 * margins["model_a"] - margins["length"]),
    )):  # fmt: skip
        again = config(
            metric={"name": "explicit", "combine": combine}, output={"path": f"{first.output.path}-{number}"}
        )
        again = again.model_copy(update={"source": None, "rewards": None, "policy": None})
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.rewards.classifier.ClassifierBackend.scorer", None)
            [report] = select_subsets(prepare_select(again))
        kept = {row["id"]: row["potential"] for row in report["top"]}
        best = np.argsort(-wanted)[: len(kept)]
        assert kept == pytest.approx(dict(zip(rows["id"].take(pa.array(best)).to_pylist(), wanted[best], strict=True)))
        html = Path(again.output.path, "report.html").read_text()
        assert "reward model" in html
        assert "prefers chosen" in html


def test_other_rewards_are_another_fingerprint_and_their_order_is_not(config: Callable[..., Config]) -> None:
    settings = config()
    prepare_score(settings)
    other = {**settings.model_dump()["rewards"]}
    prepare_score(config(rewards=dict(reversed(other.items()))))
    other["length"]["arguments"] = {"per": 20.0}
    with pytest.raises(FingerprintError, match=r"rewards\.length\.arguments\.per"):
        prepare_score(config(rewards=other))


def test_what_does_not_fit_is_refused_before_a_model_is_loaded(config: Callable[..., Config]) -> None:
    rewards = config().model_dump()["rewards"]
    with pytest.raises(SchemaError, match=r"rewards.other of backend columns needs .*reward_other_chosen"):
        prepare_score(config(source={}, rewards={"other": {"backend": "columns"}, "length": rewards["length"]}))
    rewards["model"]["heads"] = ["a", "b"]
    with pytest.raises(ModelError, match="3 logits a dialogue, and `heads` names 2"):
        prepare_score(config(rewards=rewards))
    del rewards["model"]["heads"]
    with pytest.raises(ModelError, match="heads: "):
        prepare_score(config(rewards=rewards))
    columns = {"reward_human_chosen": "human.good", "reward_human_rejected": "human.bad"}
    more = {"columns": columns | {"reward_old_chosen": "human.good", "reward_old_rejected": "human.bad"}}
    passed = {**more, "passthrough": ["reward_old_chosen", "reward_old_rejected"]}
    with pytest.raises(SchemaError, match=r"passthrough names .*reward_old_chosen"):
        prepare_score(config(source=passed))


def test_the_example_of_the_page_parses() -> None:
    [text] = re.findall(r"^```yaml\n(.*?)^```", PAGE.split("# Several rewards")[1], re.MULTILINE | re.DOTALL)
    names = parse_config(yaml.safe_load(text)).reward_names
    assert names == ("human", "maths", "skywork", "steer_helpfulness", "steer_correctness", "steer_verbosity")


def test_calls_take_several_rewards(pairs: list[dict]) -> None:
    rows = [{**row, "reward_human_chosen": float(i % 5), "reward_human_rejected": 2.0} for i, row in enumerate(pairs)]
    found = pipeline.score(rows, rewards={"human": "columns", "length": functions.length})
    assert {f"reward_{name}_chosen" for name in ("human", "length")} <= {*found.to_arrow().column_names}
    kept = pipeline.select(found, metric="explicit", combine={"members": ["human", "length"]}, fraction=0.5)
    assert kept.report["selection"]["metric"]["combine"]["members"] == ["human", "length"]


@pytest.mark.soak
@pytest.mark.ray
def test_on_ray_the_rewards_are_those_of_the_plain_loop(config: Callable[..., Config], local_ray: None) -> None:
    del local_ray
    here, on_ray = scored(config("plain")), scored(config("ray", run={"engine": "ray", "shard_rows": 8}))
    assert on_ray.drop_columns("source_file").equals(here.drop_columns("source_file"))
