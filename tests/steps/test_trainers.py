"""A subset is what trainers take: TRL's DPOTrainer trains on it as it lies, and every reader opens it."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset, load_from_disk

from tests.steps.conftest import make_config, run_all, write_jsonl


@pytest.fixture(scope="module")
def subset(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[dict],
    tiny_model_dir: Callable[..., Path],
    tiny_reward_dir: Path,
) -> Path:
    folder = tmp_path_factory.mktemp("trained-on")
    config = make_config(
        folder,
        write_jsonl(folder / "pairs.jsonl", pairs),
        policy={"model": str(tiny_model_dir("llama", seed=1)), "dtype": "float32"},
        reward={"backend": "classifier", "model": str(tiny_reward_dir), "dtype": "float32"},
    )
    run_all(config)
    return folder / "subset"


def test_subset_opens_in_datasets_and_pyarrow_with_equal_rows(subset: Path, tmp_path: Path):
    from_disk = load_from_disk(str(subset / "hf"))["train"]
    from_parquet = load_dataset(
        "parquet", data_files=str(subset / "parquet" / "*.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    table = pq.read_table(next((subset / "parquet").glob("*.parquet")))
    assert from_disk.num_rows == from_parquet.num_rows == table.num_rows == 24
    assert from_disk.to_list() == from_parquet.to_list() == table.to_pylist()
    assert set(from_disk[0]["prompt"][0]) == {"role", "content"}


@pytest.mark.slow
def test_trl_takes_five_real_steps_on_the_subset(subset: Path, tmp_path: Path, tiny_model_dir: Callable[..., Path]):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model_dir = tiny_model_dir("llama", seed=1)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(tmp_path / "trained"),
            max_steps=5,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=load_from_disk(str(subset / "hf"))["train"],
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    result = trainer.train()
    assert result.global_step == 5
    assert any(not p.detach().equal(before[name]) for name, p in model.named_parameters())
