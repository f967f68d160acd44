"""TRL itself takes each of its exports as it lies and trains on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk

from pipeline.errors import DataError, ModelError
from pipeline.training.precomputed import check_tokens, precomputed_dpo_trainer
from tests.exports.conftest import export, good_rows
from tests.steps.conftest import make_config, run_all, write_jsonl

NUM_STEPS = 2


@pytest.fixture
def model_dir(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("llama", seed=1)


def loaded(output: Path) -> Dataset:
    return load_from_disk(str(output / "hf"))["train"]


def settings(output: Path, **changes: Any) -> dict[str, Any]:
    return {"output_dir": str(output / "trained"), "max_steps": NUM_STEPS, "per_device_train_batch_size": 2,
            "learning_rate": 1e-3, "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no",
            "disable_tqdm": True, "logging_steps": 1, **changes}  # fmt: skip


def train(trainer_class: type, config: Any, model_dir: Path, rows: Dataset, *, classifier: bool = False) -> Any:
    """A trainer after its steps, which changed the weights by finite losses."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    model = auto.from_pretrained(model_dir)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    trainer = trainer_class(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    result = trainer.train()
    assert result.global_step == NUM_STEPS
    assert 0 < result.training_loss < 1e4
    assert any(not p.detach().equal(before[name]) for name, p in model.named_parameters())
    return trainer


def test_dpo_trains_on_the_export(exported: Callable[..., Path], model_dir: Path):
    from trl import DPOConfig, DPOTrainer

    output = exported("trl")
    train(DPOTrainer, DPOConfig(**settings(output)), model_dir, loaded(output))


def test_simpo_trains_on_the_export(exported: Callable[..., Path], model_dir: Path):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    output = exported("trl")
    config = CPOConfig(**settings(output, loss_type="simpo", cpo_alpha=0.0))
    train(CPOTrainer, config, model_dir, loaded(output))


def test_kto_trains_on_the_export_with_mismatched_neighbours(exported: Callable[..., Path], model_dir: Path):
    from trl import KTOConfig, KTOTrainer

    output = exported("trl-kto")
    rows = loaded(output)
    assert rows["label"] == [True, False] * 12
    assert all(rows[i]["id"] != rows[i + 1]["id"] for i in range(23))
    sequential = {"train_sampling_strategy": "sequential"}
    train(KTOTrainer, KTOConfig(**settings(output, **sequential)), model_dir, rows)


def test_reward_trains_on_the_export_with_its_margins(
    exported: Callable[..., Path], tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    from trl import RewardConfig, RewardTrainer

    output = exported("trl-reward")
    seen = []
    compute_loss = RewardTrainer.compute_loss

    def spy(self: RewardTrainer, model: Any, inputs: dict, **rest: Any) -> Any:
        seen.extend(inputs["margin"].tolist())
        return compute_loss(self, model, inputs, **rest)

    monkeypatch.setattr(RewardTrainer, "compute_loss", spy)
    model_dir = tiny_model_dir("llama", classifier=True, seed=3)
    train(RewardTrainer, RewardConfig(**settings(output)), model_dir, loaded(output), classifier=True)
    assert seen == [1.0] * (2 * NUM_STEPS)


def test_precomputed_values_are_used_and_no_reference_is_loaded(
    exported: Callable[..., Path], model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    from trl import DPOConfig
    from trl.trainer import dpo_trainer

    def never(*args: Any, **rest: Any) -> None:
        raise AssertionError("a reference model was loaded or run")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", never)
    monkeypatch.setattr(dpo_trainer.DPOTrainer, "compute_ref_log_probs", never)
    trainer_class = precomputed_dpo_trainer()
    seen: list[float] = []
    compute_loss = trainer_class._compute_loss

    def spy(self: Any, model: Any, inputs: dict, *rest: Any) -> Any:
        seen.extend(inputs["ref_chosen_logps"].tolist())
        return compute_loss(self, model, inputs, *rest)

    monkeypatch.setattr(trainer_class, "_compute_loss", spy)
    output = exported("trl")
    config = DPOConfig(**settings(output, precompute_ref_log_probs=True))
    trainer = train(trainer_class, config, model_dir, loaded(output))
    assert trainer.ref_model is None
    assert len(seen) == 2 * NUM_STEPS
    assert {*seen} <= {-10.5 - i for i in range(12)}


def test_wrong_number_of_tokens_is_refused():
    rows = Dataset.from_dict({"prompt_ids": [[1, 2]] * 3, "chosen_ids": [[3, 4, 5]] * 3, "rejected_ids": [[6]] * 3,
                              "num_tokens_chosen": [3, 3, None], "num_tokens_rejected": [1, 1, 1]})  # fmt: skip
    check_tokens(rows, None)
    check_tokens(rows, 5)
    with pytest.raises(DataError, match="2 of 3 rows"):
        check_tokens(rows, 4)


def test_other_trl_is_refused(monkeypatch: pytest.MonkeyPatch):
    from trl import DPOTrainer

    from pipeline.training.precomputed import checked_dpo_trainer

    monkeypatch.setattr(DPOTrainer, "_precompute_ref_logps", lambda self, dataset: dataset)
    with pytest.raises(ModelError, match="cannot take reference log-probs"):
        checked_dpo_trainer()
    monkeypatch.delattr(DPOTrainer, "_precompute_ref_logps")
    with pytest.raises(ModelError, match="is missing"):
        checked_dpo_trainer()


@pytest.mark.slow
def test_reference_of_the_pipeline_gives_the_loss_that_trl_computes(
    tmp_path: Path, tiny_model_dir: Callable[..., Path], model_dir: Path
):
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    reference_dir = tiny_model_dir("llama", seed=2)
    rows = [{name: row[name] for name in ("id", "prompt", "chosen", "rejected")} for row in good_rows()]
    model = {"dtype": "float32", "num_gpus": 0}
    run_all(
        make_config(
            tmp_path,
            write_jsonl(tmp_path / "pairs.jsonl", rows),
            policy={"model": str(model_dir), **model},
            reference={"model": str(reference_dir), **model},
            reward={"backend": "classifier", "model": str(tiny_model_dir("llama", classifier=True, seed=3)), **model},
            objective={"name": "dpo"},
            select={"fraction": 1.0},
        )
    )
    export(tmp_path / "subset", "trl", tmp_path / "out")
    exported = loaded(tmp_path / "out")
    assert {"ref_chosen_logps", "num_tokens_chosen"} <= {*exported.column_names}
    changes = {"precompute_ref_log_probs": True, "max_length": 2048}
    ours = train(precomputed_dpo_trainer(), DPOConfig(**settings(tmp_path, **changes)), model_dir, exported)
    plain = exported.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    reference = AutoModelForCausalLM.from_pretrained(reference_dir)

    def with_reference(**arguments: Any) -> DPOTrainer:
        return DPOTrainer(ref_model=reference, **arguments)

    theirs = train(with_reference, DPOConfig(**settings(tmp_path, max_length=2048)), model_dir, plain)
    losses = [[log["loss"] for log in each.state.log_history if "loss" in log] for each in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
