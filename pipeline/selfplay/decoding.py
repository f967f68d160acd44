"""From sampled token ids to responses, the same for every engine: where an answer ends, and what its text is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import TorchModel
from pipeline.models.loading import context_of, load_configuration, load_errors, load_tokenizer
from pipeline.selfplay.sampler import Response

# What a half character at the end of a cut answer is decoded to.
_UNDECODABLE = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoder:
    """How token ids of one model are read.

    Attributes:
        tokenizer: the model's transformers tokenizer.
        stop_ids: tokens that end an answer: those of the tokenizer and of the model's generation config; ascending.
        context: most tokens of prompt and answer together; None where the model sets no limit.
    """

    tokenizer: Any
    stop_ids: tuple[int, ...]
    context: int | None

    def longest_prompt(self, wanted: int) -> int:
        """Most tokens of a prompt: those wanted, or as many as leave the model room for an answer."""
        return wanted if self.context is None else min(wanted, self.context - 1)

    def response(self, ids: Sequence[int], *, stopped: bool) -> Response:
        """The response that was sampled as `ids`, its last one a stop token where it `stopped` by itself."""
        text = self.tokenizer.decode(
            list(ids[:-1] if stopped else ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if not stopped:
            text = text.rstrip(_UNDECODABLE)
        return Response(text=text, num_tokens=len(ids), finish_reason="stop" if stopped else "length")


def load_decoder(model: TorchModel) -> Decoder:
    """Read tokenizer and configuration of a model; no weights.

    Raises:
        ModelError: they are missing or cannot be read.
    """
    tokenizer, config = load_tokenizer(model), load_configuration(model)
    with load_errors("Cannot load the generation configuration of", model):
        generation = _generation_config(model, config)
    given = (tokenizer.eos_token_id, generation.eos_token_id)
    ids = {i for value in given for i in (value if isinstance(value, list) else [value]) if i is not None}
    return Decoder(tokenizer=tokenizer, stop_ids=tuple(sorted(ids)), context=context_of(config))


def _generation_config(model: TorchModel, config: Any) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model.model, revision=model.revision)
    except OSError:  # it has none of its own
        return GenerationConfig.from_model_config(config)
