"""The training job: what it reads, and a real adapter from two real steps."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from datasets import Dataset

from jobs.demo_data.sample_pairs import PAIRS_FILE, read_pairs
from pipeline.errors import SchemaError, SourceError

HH_ROW = {
    "chosen": "\n\nHuman: Why does ice float?\n\nAssistant: It is less dense than water.",
    "rejected": "\n\nHuman: Why does ice float?\n\nAssistant: No idea.",
}


@pytest.fixture(scope="module")
def job() -> ModuleType:
    import importlib.util

    path = Path(__file__).parents[2] / "jobs" / "train_dpo.py"
    spec = importlib.util.spec_from_file_location("train_dpo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def demo_rows(num_rows: int) -> list[dict[str, object]]:
    return [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in read_pairs()[:num_rows]]


def test_pairs_are_the_same_from_every_layout(job: ModuleType, tmp_path: Path) -> None:
    dataset = Dataset.from_list(demo_rows(5))
    dataset.save_to_disk(tmp_path / "hf")
    dataset.to_parquet(tmp_path / "pairs.parquet")
    dataset.to_json(tmp_path / "pairs.jsonl")
    for layout in ("hf", "pairs.parquet", "pairs.jsonl"):
        assert job.load_pairs(str(tmp_path / layout), 3).to_list() == demo_rows(3), layout


def test_hh_transcripts_become_messages(job: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps(HH_ROW) + "\n")
    assert job.load_pairs(str(path), None).to_list() == [
        {
            "prompt": [{"role": "user", "content": "Why does ice float?"}],
            "chosen": [{"role": "assistant", "content": "It is less dense than water."}],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        }
    ]


def test_a_folder_without_the_columns_is_refused(job: ModuleType, tmp_path: Path) -> None:
    Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "hf")
    with pytest.raises(SchemaError, match="lacks prompt, chosen, rejected; it has text"):
        job.load_pairs(str(tmp_path / "hf"), None)


def test_no_rows_are_refused_as_such(job: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps({**HH_ROW, "rejected": HH_ROW["chosen"]}) + "\n")
    with pytest.raises(SourceError, match="has 0 usable rows"):
        job.load_pairs(str(path), None)


def test_error_of_ours_is_one_line_and_its_exit_code(
    job: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        job.main(["--model", "m", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "adapter")])
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("SourceError: source ")
    assert err.count("\n") == 1


def test_steps_must_be_at_least_one(job: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        job.parse_options(["--model", "m", "--data", "d", "--output", str(tmp_path), "--steps", "0"])
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err


def test_an_adapter_is_never_overwritten(job: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit):
        job.parse_options(["--model", "m", "--data", "d", "--output", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.smollm2
def test_two_steps_train_an_adapter_that_moves_the_model(job: ModuleType, smollm2_dir: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    options = ["--model", str(smollm2_dir), "--data", str(PAIRS_FILE), "--output", str(tmp_path / "adapter")]
    options += ["--steps", "2", "--rows", "4", "--batch-size", "2", "--lr", "1e-3", "--max-length", "128"]
    summary = job.train(job.parse_options(options))
    assert (summary["rows"], summary["steps"]) == (4, 2)
    assert summary["loss"][0] == pytest.approx(0.693, abs=1e-3)  # log 2: policy and reference are equal at the start
    assert {p.suffix for p in (tmp_path / "adapter").iterdir()} <= {".safetensors", ".json", ".md"}
    base = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 4093, 198, 2]])
    with torch.inference_mode():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, tmp_path / "adapter")(ids).logits
    assert not torch.allclose(before, after, atol=1e-4)
