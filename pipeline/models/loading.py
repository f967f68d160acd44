"""Models, tokenizers and adapters from their config sections, ready to score.

Weights come from safetensors only. They are put on a GPU if one may be used, else on the CPU, in evaluation mode and
without gradients. `dtype` is the dtype of weights and compute. A CPU without instructions for it computes in float32
with the rounded weights (see cpu), at four bytes a weight. A LoRA adapter stays unmerged on top of its base. A weight
that the checkpoint lacks is an error, not a random number.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pipeline.config import Tokens, TorchModel
from pipeline.errors import ModelError, is_foreign
from pipeline.models.fingerprints import check_files, is_local
from pipeline.models.templates import SAVE_TEMPLATE, check_template

_PROBE: Final = "Naïve café, 12345 + 6.7e-8\n\tif (x != y) { return '日本'; }  🙂"


def load_tokenizer(model: TorchModel) -> Any:
    """The tokenizer of a model, as transformers loads it. Raises a ModelError if it cannot be loaded."""
    from transformers import AutoTokenizer

    return _load_part(AutoTokenizer, "Cannot load the tokenizer of", model)


def load_configuration(model: TorchModel) -> Any:
    """The configuration of a model, as transformers loads it. Raises as `load_tokenizer`."""
    from transformers import AutoConfig

    return _load_part(AutoConfig, "Cannot load the configuration of", model)


def _load_part(auto_class: Any, failure: str, model: TorchModel) -> Any:
    check_files(model)
    with load_errors(failure, model):
        return auto_class.from_pretrained(
            model.model, revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def context_of(config: Any) -> int | None:
    """Most tokens of one sequence, by a model's configuration; None if it sets no limit."""
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return context


def load_causal_lm(model: TorchModel) -> Any:
    """A causal language model, with its adapter unmerged if it has one.

    For a model on the CPU it sets the torch threads of this process, which keeps freed memory from then on.

    Raises a ModelError if it is missing, is no causal model, lacks weights, or its adapter does not fit.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, model)


def load_classifier(model: TorchModel) -> Any:
    """A sequence classifier, as a reward model. Otherwise as `load_causal_lm`."""
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, model)


def check_models(models: Mapping[str, TorchModel], tokens: Tokens) -> None:
    """Check models (by role: policy, reference, reward) by their files and tokenizers, without loading weights.

    Raises a ModelError if a model is missing, policy and reference differ in tokenizer, or one has no chat template.
    """
    tokenizers = {role: load_tokenizer(model) for role, model in models.items()}
    if "policy" in models and "reference" in models:
        check_same_tokenizer(tokenizers["policy"], tokenizers["reference"], own_templates=tokens.chat_template is None)
    if "reward" in models:
        check_template(tokenizers.pop("reward"), None, remedy=SAVE_TEMPLATE)
    for tokenizer in tokenizers.values():
        check_template(tokenizer, tokens.chat_template)


def check_same_tokenizer(policy: Any, reference: Any, *, own_templates: bool = True) -> None:
    """Check that two tokenizers give the same ids and special tokens, and have the same template if they use their own.

    Raises a ModelError if they differ.
    """
    first, second = (
        {
            "vocabulary": tokenizer.get_vocab(),
            "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "tokenisation": tokenizer(_PROBE, add_special_tokens=False)["input_ids"],
            "chat template": tokenizer.chat_template if own_templates else None,
        }
        for tokenizer in (policy, reference)
    )
    differing = sorted(name for name in first if first[name] != second[name])
    if differing:
        raise ModelError(
            f"Policy and reference must share one tokenizer; theirs differ in {', '.join(differing)}. "
            "Use a reference of the policy's family, usually the model that the policy was trained from."
        )


def _load(auto_class: Any, model: TorchModel) -> Any:
    import torch

    from pipeline.models.cpu import in_own_arithmetic, keep_freed_memory

    check_files(model)
    on_cpu = model.num_gpus == 0 or not torch.cuda.is_available()
    if on_cpu:
        torch.set_num_threads(model.num_threads)
    with load_errors("Cannot load the model", model):
        loaded, info = auto_class.from_pretrained(
            model.model,
            revision=model.revision,
            dtype=getattr(torch, model.dtype),
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            device_map=None if on_cpu else {"": "cuda"},
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"The checkpoint of {model.model} lacks {len(missing)} weights of a {type(loaded).__name__}, such as "
            f"{missing[:3]}; they would be random. Name a checkpoint that was trained for this use."
        )
    if on_cpu:
        loaded = in_own_arithmetic(loaded)
        keep_freed_memory()
    if model.adapter is not None:
        from peft import PeftConfig, PeftModel

        name, revision = model.adapter, model.adapter_revision
        with load_errors(f"Cannot load adapter {name} of", model):
            if PeftConfig.from_pretrained(name, revision=revision).is_prompt_learning:
                raise ModelError(f"Adapter {name} adds prompt tokens; wanted one that changes weights, as LoRA.")
            loaded = PeftModel.from_pretrained(loaded, name, revision=revision, is_trainable=False)
    return loaded.eval().requires_grad_(requires_grad=False)


@contextmanager
def load_errors(failure: str, model: TorchModel, remedy: str | None = None) -> Iterator[None]:
    """Turn any error of a hub client, a parser, a weight loader or an engine into a ModelError.

    Its message: `failure`, the model's name, the error's first line and `remedy`. None chooses a remedy by the error.
    """
    try:
        yield
    except BaseException as error:
        if not is_foreign(error):
            raise
        if remedy is None and "trust_remote_code" in str(error):
            remedy = "Read the code it brings; if you trust it, set trust_remote_code: true."
        elif remedy is None and is_local(model.model):
            remedy = "Check that the directory was saved whole, by save_pretrained."
        elif remedy is None:
            remedy = "Download it where the hub can be reached, or give a local directory."
        reason = first_line(error)
        raise ModelError(f"{failure} {model.model} (revision {model.revision}): {reason} {remedy}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if there is none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
