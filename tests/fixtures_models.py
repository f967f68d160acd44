"""Real models for tests: SmolLM2-135M-Instruct, and tiny random ones of many families with a tokenizer of our own."""

import fcntl
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Nothing here may look for a hub: every model of the tests is local.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = (
    "The quick brown fox jumps over the lazy dog while the user asks the assistant a question about the weather. "
    "An assistant answers the question in a few short sentences and thanks the user for asking. user assistant system "
    "What is the answer? The answer is that there are many answers, and each answer is better than the other one."
)
_VOCABULARY = 400

_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 12}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GEMMA2 = {**_WINDOWS, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
_GPT2 = {
    "vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.15,
    "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SHAPE, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", _SHAPE),
    "qwen3": ("Qwen3Config", {**_SHAPE, "head_dim": 32}),
    "mistral": ("MistralConfig", {**_SHAPE, "sliding_window": 12}),
    "gemma2": ("Gemma2Config", {**_SHAPE, **_GEMMA2, "head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", {**_SHAPE, **_WINDOWS, "head_dim": 16}),
    "granite": ("GraniteConfig", {**_SHAPE, "logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "cohere": ("CohereConfig", {**_SHAPE, "logit_scale": 0.25}),
    "gpt2": ("GPT2Config", _GPT2),
    "phi": ("PhiConfig", {**_SHAPE, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", {**_SHAPE, "sliding_window": 12}),
    "olmo2": ("Olmo2Config", _SHAPE),
    "mixtral": ("MixtralConfig", {**_SHAPE, "sliding_window": 12, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_SHAPE, **_EXPERTS, "head_dim": 16}),
    "gpt_oss": ("GptOssConfig", {**_SHAPE, **_WINDOWS, **_EXPERTS, "head_dim": 16}),
    # No attention to replace: a state that runs through the sequence.
    "mamba": ("MambaConfig", {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "bert": ("BertConfig", {k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"}),
}


def needs_vllm(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that starts vLLM, or loads it, which takes ten seconds and more: CI runs it."""
    missing = importlib.util.find_spec("vllm") is None
    return pytest.mark.slow(pytest.mark.skipif(missing, reason="no vLLM")(test))


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """Directory of SmolLM2-135M-Instruct (safetensors, tokenizer, chat template), built once into the user's cache."""
    from pipeline.demo.models import ensure_smollm2
    from pipeline.errors import ModelError

    # Test processes that start together would all unpack it, each for half a minute.
    with (Path(tempfile.gettempdir()) / f"alignpot-smollm2-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return ensure_smollm2()
        except ModelError as error:
            pytest.skip(str(error))


def tiny_model(family: str, *, classifier: bool = False, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model in float32, in evaluation mode, whose outputs depend strongly on its input."""
    import torch
    import transformers

    name, settings = _FAMILIES[family]
    config = getattr(transformers, name)(**{**settings, **changes})
    auto = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    model = auto.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(requires_grad=False)


def tiny_tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level BPE tokenizer of a few hundred tokens: <|endoftext|>, <|im_start|> (BOS), <|im_end|> (EOS)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], pad_token=special[2]
    )
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of directories with a tiny random model and its tokenizer: `tiny_model_dir("llama", seed=1)`.

    Families: llama, qwen2, qwen3, mistral, gemma2, gemma3, granite, cohere, gpt2 and others; with
    `classifier=True` a reward model with one logit. Equal arguments give the same directory.
    """
    made: dict[tuple[Any, ...], Path] = {}

    def make(family: str = "llama", *, classifier: bool = False, seed: int = 0, **changes: Any) -> Path:
        key = (family, classifier, seed, *sorted(changes.items()))
        if key not in made:
            directory = tmp_path_factory.mktemp(f"tiny-{family}")
            labels = {"num_labels": 1} if classifier and "num_labels" not in changes else {}
            tiny_model(family, classifier=classifier, seed=seed, **labels, **changes).save_pretrained(directory)
            tiny_tokenizer().save_pretrained(directory)
            made[key] = directory
        return made[key]

    return make
