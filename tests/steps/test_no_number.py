"""A row for which a model computes NaN or infinity costs itself alone."""

from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipeline.data.dataset import Dataset
from pipeline.steps.score import prepare_score, score
from tests.steps.conftest import make_config, write_jsonl


def without_number(model: Path, letter: str, value: float, copy: Path) -> Path:
    """A copy of a model that computes no number for a text with this letter."""
    is_reward = "Classification" in (model / "config.json").read_text()
    kind = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    loaded, tokenizer = kind.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    *_, token = tokenizer(letter, add_special_tokens=False)["input_ids"]
    loaded.get_input_embeddings().weight.data[token] = value
    loaded.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    return copy


def test_rows_that_give_no_number_are_dropped_and_move_no_other_score(
    tiny_model_dir: Callable[..., Path], tiny_reward_dir: Path, tmp_path: Path, pairs: list[dict]
):
    rows = [dict(row) for row in pairs[:12]]
    for place, letter in ((3, "Ж"), (8, "Щ")):
        rows[place]["rejected"] = [{"role": "assistant", "content": f"It is {letter}."}]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    sound = {"policy": tiny_model_dir("qwen2", seed=1), "reward": tiny_reward_dir}
    broken = {
        "policy": without_number(sound["policy"], "Ж", float("nan"), tmp_path / "policy"),
        "reward": without_number(sound["reward"], "Щ", float("inf"), tmp_path / "reward"),
    }
    scores, drops = [], []
    for name, models in (("sound", sound), ("broken", broken)):
        policy, reward = ({"model": str(models[role]), "dtype": "float32"} for role in ("policy", "reward"))
        sections = {"policy": policy, "reward": {"backend": "classifier", **reward}}
        run = prepare_score(make_config(tmp_path / name, source, **sections))
        drops.append(score(*run)[1].drops_by_reason)
        columns = ["id", "policy_logp_chosen", "policy_logp_rejected", "reward_chosen", "reward_rejected"]
        scores.append([row for table in Dataset.open(run[-1].place).tables(columns) for row in table.to_pylist()])
    assert drops == [{}, {"policy: non_finite_logp": 1, "reward: non_finite_reward": 1}]
    assert scores[1] == [row for i, row in enumerate(scores[0]) if i not in (3, 8)]
