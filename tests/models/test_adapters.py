"""Adapters as trainers leave them: with a tokenizer, a template, new tokens, or a head of their own."""

import shutil

import numpy as np
import pytest
import torch

from pipeline.config import ClassifierReward, Tokens, TorchModel
from pipeline.errors import ModelError
from pipeline.models.fingerprints import model_fingerprint
from pipeline.models.loading import check_models, load_causal_lm, load_classifier, load_tokenizer
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import Completion
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import CHATML, tiny_model, tiny_tokenizer

OTHER = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
IDS = np.arange(5, 45, dtype=np.int32)


def section(path, adapter, **settings) -> TorchModel:
    return TorchModel(model=str(path), adapter=str(adapter), dtype="float32", **settings)


def lora(model, **settings):
    """The model with a random adapter that changes its outputs."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(model, LoraConfig(**settings)).eval()


def plain_sum(model, start, ids=IDS) -> float:
    """Log-probability of the tokens from `start` on, by the model's own forward."""
    wanted = torch.as_tensor(ids, dtype=torch.int64)[None]
    with torch.no_grad():
        logp = model(input_ids=wanted).logits[0].double().log_softmax(-1)
    return logp[torch.arange(start - 1, len(ids) - 1), wanted[0, start:]].sum().item()


def scored(model, ids=IDS) -> float:
    return LogprobEngine(model).score([(Completion(ids=ids, start=30),)]).values[0]


def test_tokenizer_and_template_of_an_adapter_take_the_place_of_the_models(tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    lora(tiny_model("llama")).save_pretrained(tmp_path / "bare")
    adapted = shutil.copytree(tmp_path / "bare", tmp_path / "adapter")
    bare = model_fingerprint(section(base, tmp_path / "bare"))
    assert load_tokenizer(section(base, tmp_path / "bare")).chat_template == CHATML
    assert "tokenizer" not in bare["adapter"]

    (adapted / "chat_template.jinja").write_text(OTHER)
    assert load_tokenizer(section(base, adapted)).chat_template == OTHER
    tokenizer = tiny_tokenizer(OTHER)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(adapted)
    loaded = load_tokenizer(section(base, adapted))
    assert (loaded.chat_template, len(loaded)) == (OTHER, len(tokenizer))
    before = model_fingerprint(section(base, adapted))
    (adapted / "chat_template.jinja").write_text(CHATML)
    after = model_fingerprint(section(base, adapted))
    assert before["adapter"]["tokenizer"] != after["adapter"]["tokenizer"]
    assert before["adapter"]["weights"] == after["adapter"]["weights"] == bare["adapter"]["weights"]


def grown(tmp_path, num_tokens, **settings):
    """A model with rows for new tokens and a trained adapter, as a trainer saves it; the model with the adapter."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<|new-{index}|>" for index in range(num_tokens - len(tokenizer))])
    model = tiny_model("llama", tie_word_embeddings=settings.pop("tied", True))
    torch.manual_seed(3)
    model.resize_token_embeddings(num_tokens)
    adapted = lora(model, **settings)
    adapted.save_pretrained(tmp_path, save_embedding_layers="auto" if settings else True)
    tokenizer.save_pretrained(tmp_path)
    return adapted


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": False, "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"], "tied": False},
        {"trainable_token_indices": {"embed_tokens": [*range(512, 520)]}},
    ],
)
def test_embeddings_follow_the_tokens_that_were_added_for_an_adapter(settings, tiny_model_dir, tmp_path):
    tied = settings.get("tied", True)
    expected = grown(tmp_path, 520, **settings)
    loaded = load_causal_lm(section(tiny_model_dir("llama", tie_word_embeddings=tied), tmp_path))
    ids = np.concatenate([IDS[:36], [515, 516, 519, 513]]).astype(np.int32)
    assert loaded.get_input_embeddings().weight.shape[0] == 520
    assert scored(loaded, ids) == pytest.approx(plain_sum(expected, 30, ids), rel=1e-5)


def test_new_tokens_without_embeddings_and_unfit_adapters_are_refused_with_the_true_reason(tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    adapted = grown(tmp_path / "grown", 520)
    check_models({"policy": section(base, tmp_path / "grown")}, Tokens())
    plain = TorchModel(model=str(base), dtype="float32")
    with pytest.raises(ModelError, match=r"adds 8 tokens for which the reference, .*has no embeddings"):
        check_models({"policy": section(base, tmp_path / "grown"), "reference": plain}, Tokens())
    adapted.save_pretrained(tmp_path / "grown", save_embedding_layers=False)
    with pytest.raises(ModelError, match=r"trained with 520 tokens.* embeddings of 512.*save_embedding_layers=True"):
        load_causal_lm(section(base, tmp_path / "grown"))
    lora(tiny_model("llama")).save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"state_dict .*: size mismatch for .*q_proj\.lora_A.*trained on this model"):
        load_causal_lm(section(tiny_model_dir("llama", hidden_size=32), tmp_path / "plain"))
    with pytest.raises(ModelError, match=r"does not fit GPT2LMHeadModel|arget modules"):
        load_causal_lm(section(tiny_model_dir("gpt2"), tmp_path / "plain"))


def test_padding_that_a_trainer_added_needs_no_embedding(tiny_model_dir, tmp_path):
    adapted = lora(tiny_model("llama"))
    adapted.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<|new-{index}|>" for index in range(512 - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(tmp_path)
    loaded = load_causal_lm(section(tiny_model_dir("llama"), tmp_path))
    assert scored(loaded) == pytest.approx(plain_sum(adapted, 30), rel=1e-5)


def test_a_reference_may_be_the_base_of_an_adapter_that_has_another_template(tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    lora(tiny_model("llama")).save_pretrained(tmp_path)
    tiny_tokenizer(OTHER).save_pretrained(tmp_path)
    plain = TorchModel(model=str(base), dtype="float32")
    check_models({"policy": section(base, tmp_path), "reference": plain}, Tokens())
    other = TorchModel(model=str(tiny_model_dir("llama", seed=1)))
    with pytest.raises(ModelError, match="differ in chat template"):
        check_models({"policy": section(base, tmp_path), "reference": other}, Tokens())


def test_the_head_of_a_reward_adapter_is_loaded(tiny_model_dir, tmp_path):
    torch.manual_seed(5)
    model = tiny_model("llama", classifier=True, num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    expected = lora(model, task_type="SEQ_CLS")
    expected.save_pretrained(tmp_path)
    reward = ClassifierReward(
        backend="classifier", model=str(tiny_model_dir("llama")), adapter=str(tmp_path), dtype="float32"
    )
    engine = ClassifierEngine(load_classifier(reward))
    assert engine.kernel == "sdpa"
    with torch.no_grad():
        wanted = expected(input_ids=torch.as_tensor(IDS, dtype=torch.int64)[None]).logits.item()
    assert engine.score([(Completion(ids=IDS, start=0),)]).values[0] == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ModelError, match=r"brings \[?'?score\.weight'?\]?, for which the model has no place"):
        load_causal_lm(section(tiny_model_dir("llama"), tmp_path))


@pytest.mark.parametrize("settings", [{"target_modules": ["q_proj", "down_proj"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_and_its_base_run_on_one_set_of_weights_unless_it_changes_the_base(
    settings, tiny_model_dir, tmp_path
):
    base = tiny_model_dir("llama", tie_word_embeddings=False)
    torch.manual_seed(4)
    lora(tiny_model("llama", tie_word_embeddings=False), **settings).save_pretrained(tmp_path)
    sections = {"policy": section(base, tmp_path), "reference": TorchModel(model=str(base), dtype="float32")}
    groups = [(Completion(ids=IDS, start=30),), (Completion(ids=IDS[::-1].copy(), start=20),)]
    alone = {role: LogprobEngine(load_causal_lm(model)).score(groups).values for role, model in sections.items()}
    engines = {role: LogprobEngine.load(model) for role, model in sections.items()}
    for role in ("policy", "reference", "policy", "reference"):
        np.testing.assert_array_equal(engines[role].score(groups).values, alone[role])
    assert not np.equal(alone["policy"], alone["reference"]).any()
    policy, reference = (engine._backbone.model for engine in engines.values())
    assert (policy is reference) == ("modules_to_save" not in settings)
