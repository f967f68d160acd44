"""Loading, refusing and identifying models, with real files on disk."""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest

from pipeline.config import ClassifierReward, Tokens, TorchModel
from pipeline.errors import ModelError
from pipeline.models.fingerprints import check_files, model_fingerprint
from pipeline.models.loading import (
    check_models,
    check_same_tokenizer,
    load_causal_lm,
    load_classifier,
    load_configuration,
    load_tokenizer,
)
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.prompts import PairTokenizer
from pipeline.models.rewards import ClassifierEngine
from pipeline.rewards.classifier import ClassifierBackend
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
    expected = LogprobEngine(tiny_model("llama")).score(groups).values
    got = LogprobEngine(load_causal_lm(causal(tiny_model_dir("llama")))).score(groups).values
    np.testing.assert_array_equal(got, expected)


def test_an_adapter_stays_unmerged_and_changes_scores(tiny_model_dir, adapter_dir, groups):
    plain = LogprobEngine(load_causal_lm(causal(tiny_model_dir("llama")))).score(groups).values
    adapted = load_causal_lm(causal(tiny_model_dir("llama"), adapter=str(adapter_dir)))
    assert any("lora_A" in name for name, _ in adapted.named_parameters())
    engine = LogprobEngine(adapted)
    assert engine.kernel == "sdpa"
    assert not np.allclose(engine.score(groups).values, plain, rtol=1e-3)


def test_a_classifier_loads_and_scores(tiny_model_dir, groups):
    path = tiny_model_dir("llama", classifier=True)
    reward = ClassifierReward(backend="classifier", model=str(path), dtype="float32")
    assert np.isfinite(ClassifierEngine(load_classifier(reward)).score(groups).values).all()


def test_a_checkpoint_without_a_reward_head_is_refused(tiny_model_dir):
    reward = ClassifierReward(backend="classifier", model=str(tiny_model_dir("llama")))
    with pytest.raises(ModelError, match=r"score\.weight.*random"):
        load_classifier(reward)


def test_an_adapter_of_another_shape_is_refused(tiny_model_dir, adapter_dir):
    with pytest.raises(ModelError, match=r"Cannot load adapter .* of "):
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


def cut(data: bytes) -> bytes:
    return data[:-1]


def grow_first_tensor(data: bytes) -> bytes:
    return data.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1)


def claim_a_huge_header(data: bytes) -> bytes:
    return b"\xff" * 8 + data[8:]


def flip_in_header(data: bytes) -> bytes:
    return data.replace(b'"shape"', b'"shapf"', 1)


@pytest.mark.parametrize("damage", [cut, grow_first_tensor, claim_a_huge_header, flip_in_header, lambda _: b""])
def test_damaged_weights_are_told_before_any_are_loaded(damage, tiny_model_dir, adapter_dir, tmp_path):
    path = shutil.copytree(tiny_model_dir("llama"), tmp_path / "model")
    adapted = causal(path, adapter=str(adapter_dir))
    load_tokenizer(adapted)
    for file, section in ((adapter_dir / "adapter_model.safetensors", adapted), (path / "model.safetensors", adapted)):
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        for use in (load_tokenizer, load_configuration, load_causal_lm):
            with pytest.raises(ModelError, match=rf"{file.name} is damaged: .*again"):
                use(section)
        file.write_bytes(whole)


def test_weights_in_several_files_must_all_be_there(tiny_model_dir, tmp_path):
    path = shutil.copytree(tiny_model_dir("llama"), tmp_path / "model")
    tiny_model("llama").save_pretrained(path, max_shard_size="100KB")
    (path / "model.safetensors").unlink()
    load_causal_lm(causal(path))
    first, index = sorted(path.glob("model-*.safetensors"))[0], path / "model.safetensors.index.json"
    first.rename(path / "elsewhere")
    with pytest.raises(ModelError, match=rf"lacks {first.name}, which {index.name} names"):
        load_tokenizer(causal(path))
    (path / "elsewhere").rename(first)
    for damage in ("", "[]", '{"weight_map": 3}', '{"weight_map": {"x": 3}}', "[" * 100_000):
        index.write_text(damage)
        with pytest.raises(ModelError, match=rf"{index.name} is damaged"):
            load_tokenizer(causal(path))
    tiny_model("llama").save_pretrained(path)
    load_causal_lm(causal(path))


def test_damaged_weights_in_the_cache_of_the_hub_are_told(tiny_model_dir, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_model_dir("llama"), snapshot)
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    check_files(causal("org/tiny"))
    (snapshot / "model.safetensors").write_bytes(cut((snapshot / "model.safetensors").read_bytes()))
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        check_files(causal("org/tiny"))


def panicking(tokenizer: str) -> str:
    return tokenizer.replace('"continuing_subword_prefix": null', '"continuing_subword_prefix": "#####"')


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("tokenizer.json", lambda text: text[:-5]),
        ("tokenizer.json", panicking),
        ("tokenizer_config.json", lambda _: "[" * 100_000),
        ("config.json", lambda _: '{"a":' * 100_000),
        ("config.json", lambda text: text[:-5]),
    ],
)
def test_other_damaged_files_are_model_errors(file, damage, tiny_model_dir, tmp_path):
    path = shutil.copytree(tiny_model_dir("llama"), tmp_path / "model")
    (path / file).write_text(damage((path / file).read_text()))
    with pytest.raises(ModelError, match=r"Cannot load"):
        (load_configuration if file == "config.json" else load_tokenizer)(causal(path))


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
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"id2label": {"0": "reward"}}))
    reward = ClassifierReward(backend="classifier", model=str(bare))
    with pytest.raises(ModelError, match=r"no chat template\. Set reward\.chat_template"):
        ClassifierBackend(reward).check(Tokens(), ())
    own = reward.model_copy(update={"chat_template": given.chat_template})
    ClassifierBackend(own).check(Tokens(), ())
    ClassifierBackend(reward).check(Tokens(template="none"), ())
    check_models({"policy": causal(bare)}, Tokens(template="none"))


BROKEN = "{% for m in messages %}\n{{ m['content'] }}\n{% endfo %}"


def test_a_chat_template_that_cannot_be_compiled_is_told_with_its_owner_and_line(tiny_model_dir, tmp_path):
    path = shutil.copytree(tiny_model_dir("llama"), tmp_path / "model")
    with pytest.raises(ModelError, match=r"tokens\.chat_template is no .* line 3: .*'endfo'"):
        check_models({"policy": causal(path)}, Tokens(chat_template=BROKEN))
    with pytest.raises(ModelError, match=r"line 1: No filter named 'shout'"):
        check_models({"policy": causal(path)}, Tokens(chat_template="{{ messages | shout }}"))
    (path / "chat_template.jinja").write_text(BROKEN)
    reward = ClassifierBackend(ClassifierReward(backend="classifier", model=str(path)))
    for check in (
        lambda: reward.check(Tokens(), ()),
        lambda: check_models({"policy": causal(path), "reference": causal(path)}, Tokens()),
    ):
        with pytest.raises(ModelError, match=rf"chat template of {path} is no .* line 3: ") as told:
            check()
        assert "\n" not in str(told.value)
    (path / "chat_template.jinja").write_text(EXTENDED)
    check_models({"policy": causal(path)}, Tokens())


EXTENDED = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% break %}{% endfor %}"


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ({"default": EXTENDED, "tool_use": EXTENDED, "never_used": BROKEN}, None),
        ({"default": BROKEN, "tool_use": EXTENDED}, r"is no .* line 3: "),
        ({"default": EXTENDED, "tool_use": BROKEN}, r"\(tool_use\) is no .* line 3: "),
        ({"tool_use": EXTENDED}, r"none of them is the default"),
        ({"default": 5, "tool_use": EXTENDED}, r"is no Jinja template"),
    ],
)
def test_each_chat_template_that_may_be_used_is_compiled(named, error):
    if error is None:
        PairTokenizer(tiny_tokenizer(named), Tokens())
    else:
        with pytest.raises(ModelError, match=error):
            PairTokenizer(tiny_tokenizer(named), Tokens())
