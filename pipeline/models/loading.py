"""Models, tokenizers and adapters from their config sections, ready to score.

Weights come from safetensors only. They are put on a GPU if one may be used, else on the CPU, in evaluation mode and
without gradients. `dtype` is the dtype of weights and compute. A CPU without instructions for it computes in float32
with the rounded weights (see cpu), at four bytes a weight. A LoRA adapter stays unmerged on top of its base, see
adapters. A weight that neither checkpoint nor adapter has is an error, not a random number.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from pipeline.config import Tokens, TorchModel
from pipeline.errors import ModelError, is_foreign
from pipeline.models.adapters import Adapter
from pipeline.models.fingerprints import check_files, is_local
from pipeline.models.templates import check_template

_FIT_ADAPTER: Final = "Check that the adapter was trained on this model, and that its folder was saved whole."
_PROBE: Final = "Naïve café, 12345 + 6.7e-8\n\tif (x != y) { return '日本'; }  🙂"


class Named(Protocol):
    """The section of a model, as far as its files are found by it."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def revision(self) -> str: ...  # noqa: D102
    @property
    def trust_remote_code(self) -> bool: ...  # noqa: D102


def load_tokenizer(model: TorchModel) -> Any:
    """The tokenizer of a model, as transformers loads it; that of its adapter if the adapter has one.

    Raises a ModelError if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    adapter = None if model.adapter is None else Adapter(model)
    check_files(model)
    if adapter is not None and adapter.has_tokenizer:
        with load_errors(f"Cannot load the tokenizer of adapter {adapter.name} of", model):
            return AutoTokenizer.from_pretrained(
                adapter.name, revision=adapter.revision, trust_remote_code=model.trust_remote_code
            )
    tokenizer = _load_part(AutoTokenizer, "Cannot load the tokenizer of", model)
    if adapter is not None and adapter.template is not None:
        tokenizer.chat_template = adapter.template
    return tokenizer


def load_tokenizer_alone(model: Named) -> Any:
    """The tokenizer of a model whose weights may be elsewhere. Raises a ModelError if it cannot be loaded."""
    from transformers import AutoTokenizer

    with load_errors("Cannot load the tokenizer of", model):
        return AutoTokenizer.from_pretrained(
            model.model, revision=model.revision, trust_remote_code=model.trust_remote_code
        )


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
    """Check causal models (by role: policy, reference) by their files and tokenizers, without loading weights.

    Raises a ModelError if a model is missing, policy and reference differ in tokenizer, or one has no chat template.
    """
    tokenizers = {role: load_tokenizer(model) for role, model in models.items()}
    is_templated = tokens.template == "chat"
    if "policy" in models and "reference" in models:
        policy, reference = models["policy"], models["reference"]
        base = (policy.model, policy.revision)
        if policy.adapter is not None and reference.adapter is None and (reference.model, reference.revision) == base:
            _check_extended(tokenizers["policy"], tokenizers.pop("reference"), load_configuration(reference), policy)
        else:
            own_templates = is_templated and tokens.chat_template is None
            check_same_tokenizer(tokenizers["policy"], tokenizers["reference"], own_templates=own_templates)
    for tokenizer in tokenizers.values() if is_templated else ():
        check_template(tokenizer, tokens.chat_template)


def _check_extended(policy: Any, reference: Any, config: Any, adapted: TorchModel) -> None:
    """Check that a reference can score what the tokenizer of the policy's adapter writes; it is the adapter's base.

    Raises a ModelError if a token has another id, or the reference has no embedding for a new one.
    """
    ours, theirs = policy.get_vocab(), reference.get_vocab()
    if any(ours.get(token) != index for token, index in theirs.items()):
        raise ModelError(
            f"The tokenizer of adapter {adapted.adapter} gives tokens other ids than the reference's, {adapted.model}. "
            "Use the tokenizer that the adapter was trained with, or another reference."
        )
    num_new = sum(index >= config.get_text_config().vocab_size for index in ours.values())
    if num_new:
        raise ModelError(
            f"Adapter {adapted.adapter} adds {num_new} tokens for which the reference, {adapted.model}, has no "
            "embeddings. Use a reference that was trained with them, or an objective without reference."
        )


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
    adapter = None if model.adapter is None else Adapter(model)
    labels = adapter.num_labels if adapter is not None and "Sequence" in auto_class.__name__ else None
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
            **({} if labels is None else {"num_labels": labels}),
        )
    missing = sorted({*info["missing_keys"]} - {*(adapter.shapes if adapter is not None else ())})
    if missing:
        raise ModelError(
            f"The checkpoint of {model.model} lacks {len(missing)} weights of a {type(loaded).__name__}, such as "
            f"{missing[:3]}; they would be random. Name a checkpoint that was trained for this use."
        )
    if adapter is not None:
        adapter.fit_embeddings(loaded, load_tokenizer(model))
    if on_cpu:
        loaded = in_own_arithmetic(loaded)
        keep_freed_memory()
    if adapter is not None:
        with load_errors(f"Cannot load adapter {adapter.name} of", model, _FIT_ADAPTER):
            loaded = adapter.attach(loaded)
    return loaded.eval().requires_grad_(requires_grad=False)


@contextmanager
def load_errors(failure: str, model: Named, remedy: str | None = None) -> Iterator[None]:
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
    """The first line of an error's message, with the next one if it ends in a colon; its class if there is none."""
    first, *rest = [line.strip() for line in str(error).splitlines()] or [""]
    return (f"{first} {rest[0]}" if first.endswith(":") and rest else first) or type(error).__name__
