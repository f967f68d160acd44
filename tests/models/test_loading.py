"""Loading, refusing and identifying models, with real files on disk."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline.config import ClassifierReward, Tokens, TorchModel
from pipeline.errors import ModelError
from pipeline.models.fingerprints import model_fingerprint
from pipeline.models.loading import check_models, check_same_tokenizer, load_causal_lm, load_classifier, load_tokenizer
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model, tiny_tokenizer


def causal(path, **settings) -> TorchModel:
    return TorchModel(model=str(path), dtype="float32", **settings)


@pytest.fixture
def adapter_dir(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_loaded_model_is_frozen_in_evaluation_mode(tiny_model_dir):
    model = load_causal_lm(causal(tiny_model_dir("llama")))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_loaded_weights_score_as_the_saved_ones(tiny_model_dir, groups):
    expected = LogprobEngine(tiny_model("llama")).score(groups).sum_logp
    got = LogprobEngine(load_causal_lm(causal(tiny_model_dir("llama")))).score(groups).sum_logp
    np.testing.assert_array_equal(got, expected)


def test_an_adapter_stays_unmerged_and_changes_scores(tiny_model_dir, adapter_dir, groups):
    plain = LogprobEngine(load_causal_lm(causal(tiny_model_dir("llama")))).score(groups).sum_logp
    adapted = load_causal_lm(causal(tiny_model_dir("llama"), adapter=str(adapter_dir)))
    assert any("lora_A" in name for name, _ in adapted.named_parameters())
    engine = LogprobEngine(adapted)
    assert engine.kernel == "sdpa"
    assert not np.allclose(engine.score(groups).sum_logp, plain, rtol=1e-3)


def test_a_classifier_loads_and_scores(tiny_model_dir, groups):
    path = tiny_model_dir("llama", classifier=True)
    reward = ClassifierReward(backend="classifier", model=str(path), dtype="float32")
    assert np.isfinite(ClassifierEngine(load_classifier(reward)).score(groups).reward).all()


def test_a_checkpoint_without_a_reward_head_is_refused(tiny_model_dir):
    reward = ClassifierReward(backend="classifier", model=str(tiny_model_dir("llama")))
    with pytest.raises(ModelError, match=r"score\.weight.*random"):
        load_classifier(reward)


def test_an_adapter_of_another_shape_is_refused(tiny_model_dir, adapter_dir):
    with pytest.raises(ModelError, match=r"Adapter .* cannot be loaded"):
        load_causal_lm(causal(tiny_model_dir("llama", hidden_size=32), adapter=str(adapter_dir)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: path / "nowhere", "does not exist"),
        (lambda path: path, "no config.json"),
        (lambda path: "s3://bucket/model", "is a URL"),
        (lambda path: "no-such-org/no-such-model", "local directory"),
    ],
)
def test_what_is_no_model_is_refused_with_a_remedy(build, message, tmp_path):
    for use in (model_fingerprint, load_causal_lm, load_tokenizer):
        with pytest.raises(ModelError, match=message):
            use(causal(build(tmp_path)))


def test_weights_in_other_formats_are_refused(tiny_model_dir, tmp_path):
    path = tmp_path / "pickled"
    shutil.copytree(tiny_model_dir("llama"), path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    for use in (model_fingerprint, load_causal_lm):
        with pytest.raises(ModelError, match=r"no safetensors .*pytorch_model\.bin.*save_pretrained"):
            use(causal(path))


def test_a_fingerprint_follows_the_content_and_not_the_place(tiny_model_dir, tmp_path):
    first = model_fingerprint(causal(tiny_model_dir("llama")))
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_model_dir("llama"), moved)
    assert model_fingerprint(causal(moved, replicas=4, token_budget=1)) == first
    assert str(tiny_model_dir("llama")) not in json.dumps(first)
    assert model_fingerprint(TorchModel(model=str(moved), dtype="bfloat16")) != first
    assert model_fingerprint(causal(tiny_model_dir("llama", seed=1)))["weights"] != first["weights"]
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    changed = model_fingerprint(causal(moved))
    assert [key for key in first if changed[key] != first[key]] == ["tokenizer"]


def test_a_fingerprint_holds_the_adapter(tiny_model_dir, adapter_dir):
    plain = model_fingerprint(causal(tiny_model_dir("llama")))
    adapted = model_fingerprint(causal(tiny_model_dir("llama"), adapter=str(adapter_dir)))
    assert {key: value for key, value in adapted.items() if key != "adapter"} == plain


def test_a_hub_cache_is_identified_by_its_file_names(tiny_model_dir, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for index, file in enumerate(sorted(tiny_model_dir("llama").iterdir())):
        shutil.copy(file, blobs / f"digest{index}")
        (snapshot / file.name).symlink_to(blobs / f"digest{index}")
    before = model_fingerprint(causal(snapshot))
    for blob in blobs.iterdir():
        blob.write_bytes(b"")  # not read
    assert model_fingerprint(causal(snapshot)) == before


def test_a_fingerprint_needs_neither_torch_nor_transformers(tiny_model_dir):
    code = (
        "import sys; from pipeline.models.fingerprints import model_fingerprint; "
        "from pipeline.config import TorchModel; import pipeline.models.loading; "
        f"model_fingerprint(TorchModel(model={str(tiny_model_dir('llama'))!r})); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'transformers', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokenizers_that_differ_are_refused_by_what_differs():
    check_same_tokenizer(tiny_tokenizer(), tiny_tokenizer())
    other_template = tiny_tokenizer("{{ messages }}")
    with pytest.raises(ModelError, match="differ in chat template"):
        check_same_tokenizer(tiny_tokenizer(), other_template)
    grown = tiny_tokenizer()
    grown.add_tokens(["<|new|>"])
    with pytest.raises(ModelError, match="differ in vocabulary"):
        check_same_tokenizer(tiny_tokenizer(), grown)


def test_models_are_checked_before_weights_are_loaded(tiny_model_dir, tmp_path):
    policy = causal(tiny_model_dir("llama"))
    check_models({"policy": policy, "reference": policy}, Tokens())
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model_dir("llama"), bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"tokens\.chat_template"):
        check_models({"policy": causal(bare)}, Tokens())
    given = Tokens(chat_template="{{ messages[0]['content'] }}")
    check_models({"policy": causal(bare)}, given)
    with pytest.raises(ModelError, match="differ in chat template"):
        check_models({"policy": policy, "reference": causal(bare)}, Tokens())
    check_models({"policy": policy, "reference": causal(bare)}, given)
    with pytest.raises(ModelError, match="reward model's tokenizer"):
        check_models({"reward": ClassifierReward(backend="classifier", model=str(bare))}, Tokens())
