"""The training job: what it reads, and a real adapter from two real steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk

from jobs import train_dpo
from jobs.demo_data.sample_pairs import read_pairs
from pipeline.config import Storage
from pipeline.demo.run import PAIRS_FILE

HH_ROW = {
    "chosen": "\n\nHuman: Why does ice float?\n\nAssistant: It is less dense than water.",
    "rejected": "\n\nHuman: Why does ice float?\n\nAssistant: No idea.",
}


def demo_rows(num_rows: int) -> list[dict[str, object]]:
    return [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in read_pairs()[:num_rows]]


def pairs_of(data: Path, scratch: Path) -> list[dict[str, Any]]:
    dataset = load_from_disk(train_dpo.saved(str(data), Storage(), scratch))
    return dataset.select_columns(["prompt", "chosen", "rejected"]).to_list()


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = train_dpo.main(["--model", "m", *arguments])
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_pairs_are_the_same_from_every_layout(tmp_path: Path) -> None:
    dataset = Dataset.from_list(demo_rows(5))
    dataset.save_to_disk(tmp_path / "hf")
    dataset.to_parquet(tmp_path / "pairs.parquet")
    dataset.to_json(tmp_path / "pairs.jsonl")
    for layout in ("hf", "pairs.parquet", "pairs.jsonl"):
        assert pairs_of(tmp_path / layout, tmp_path / f"scratch {layout}") == demo_rows(5), layout


def test_hh_transcripts_become_messages(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps(HH_ROW) + "\n")
    assert pairs_of(path, tmp_path) == [
        {
            "prompt": [{"role": "user", "content": "Why does ice float?"}],
            "chosen": [{"role": "assistant", "content": "It is less dense than water."}],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        }
    ]


def test_no_rows_are_refused_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps({**HH_ROW, "rejected": HH_ROW["chosen"]}) + "\n")
    error = error_of(capsys, "--data", str(path), "--output", str(tmp_path / "adapter"))
    assert error.startswith("SourceError: --data")
    assert "has 0 usable rows" in error


def test_an_error_of_ours_is_one_line_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, "--data", str(tmp_path / "none"), "--output", str(tmp_path / "adapter"))
    assert error.startswith("StorageError: ")
    assert "none: not there. Correct the path." in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.max_steps=0", "max_steps"),
        ("train.max_step=1", "max_step"),
        ("train.beta=much", "beta"),
        ("policy.adapter=a", "wanted SECTION.KEY=VALUE with one of the sections train, objective, tokens, storage"),
        ("max_steps=1", "wanted SECTION.KEY=VALUE"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(capsys, "--data", str(tmp_path), "--output", str(tmp_path / "adapter"), "--set", change)
    assert error.startswith("ConfigError: ")
    assert message in error


def test_what_another_program_wrote_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    error = error_of(capsys, "--data", str(PAIRS_FILE), "--output", str(tmp_path / "adapter"))
    assert "no training wrote it" in error
    assert (tmp_path / "adapter" / "adapter_config.json").read_text() == "{}"


@pytest.mark.slow
def test_two_steps_train_an_adapter_that_moves_the_model(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = str(tiny_model_dir("llama"))
    arguments = ["--model", model, "--data", str(PAIRS_FILE), "--output", str(tmp_path / "adapter")]
    for change in ("max_steps=2", "batch_size=2", "learning_rate=1e-3", "dtype=float32"):
        arguments += ["--set", f"train.{change}"]
    arguments += ["--set", "tokens.max_length=128"]
    assert train_dpo.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == 2
    assert summary["loss"][0] == pytest.approx(0.693, abs=1e-3)  # log 2: policy and reference are equal at the start
    assert {p.suffix for p in (tmp_path / "adapter").iterdir()} <= {".safetensors", ".json", ".md"}
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 409, 198, 2]])
    with torch.inference_mode():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, tmp_path / "adapter")(ids).logits
    assert not torch.allclose(before, after, atol=1e-4)
    assert train_dpo.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == summary  # the adapter is kept, and nothing is trained
