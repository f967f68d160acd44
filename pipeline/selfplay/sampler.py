"""What a sampling engine takes and gives, and what all engines share.

A request holds token ids, never text to be tokenised again, and a seed for each response. So its responses do not
depend on the requests beside it, apart from rounding, which in half precision may follow the batch. A shard is
therefore always sampled as one call.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from pipeline.config import Generate, TorchModel
from pipeline.errors import ConfigError
from pipeline.models.loading import context_of, load_configuration, load_errors, load_tokenizer
from pipeline.models.packing import Int32Array

GREEDY: Final = 1e-5  # temperatures below this take the likeliest token; all K responses are then the same
_CUT_CHARACTER: Final = "\ufffd"  # half a character at the end of a cut answer is decoded to this


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One prompt: its token ids, int32, generation prompt included, and a seed of 63 bits."""

    prompt_ids: Int32Array
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One sampled answer: its text without special tokens, its tokens, and whether it ended by itself.

    `num_tokens` counts all tokens sampled, including the one that ended the answer.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]


class Sampler(Protocol):
    """A model that is loaded and answers."""

    def sample(self, requests: Sequence[Request], sampling: Generate) -> list[list[Response]]:
        """`num_responses` responses to each request, in order; temperature, top_p and max_tokens say how."""

    def close(self) -> None:
        """Free the model."""


def open_sampler(model: TorchModel, generate: Generate) -> Sampler:
    """Load a model into the engine that `generate` names.

    Raises:
        ConfigError: engine_args are given to an engine that takes none.
        ModelError: the engine is not installed, or cannot run the model.
    """
    if generate.engine == "vllm":
        from pipeline.selfplay.vllm_sampler import VllmSampler

        return VllmSampler(model, generate)
    if generate.engine_args:
        raise ConfigError("generate.engine_args are arguments of vLLM; generate.engine: transformers takes none.")
    from pipeline.selfplay.transformers_sampler import TransformersSampler

    return TransformersSampler(model, generate)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoder:
    """How token ids of one model become responses, whatever the engine."""

    tokenizer: Any
    stop_ids: tuple[int, ...]
    """Tokens that end an answer, ascending: those of the tokenizer and of the model's generation config."""
    context: int | None
    """Most tokens of prompt and answer together; None if the model sets no limit."""

    def response(self, ids: Sequence[int], *, stopped: bool) -> Response:
        """The response that was sampled as `ids`; the last one is a stop token if it `stopped` by itself."""
        text = self.tokenizer.decode(
            list(ids[:-1] if stopped else ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if not stopped:
            text = text.rstrip(_CUT_CHARACTER)
        return Response(text=text, num_tokens=len(ids), finish_reason="stop" if stopped else "length")


def load_decoder(model: TorchModel) -> Decoder:
    """Read tokenizer and configuration of a model; no weights."""
    tokenizer, config = load_tokenizer(model), load_configuration(model)
    with load_errors("Cannot load the generation configuration of", model):
        from transformers import GenerationConfig

        try:
            generation = GenerationConfig.from_pretrained(model.model, revision=model.revision)
        except OSError:  # it has none of its own
            generation = GenerationConfig.from_model_config(config)
    given = (tokenizer.eos_token_id, generation.eos_token_id)
    ids = {i for value in given for i in (value if isinstance(value, list) else [value]) if i is not None}
    return Decoder(tokenizer=tokenizer, stop_ids=tuple(sorted(ids)), context=context_of(config))


def seed_of(seed: int, *names: str) -> int:
    """A seed of 63 bits for one use of `seed`: the same for the same names, and unrelated for others."""
    text = "\x1f".join([str(seed), *names])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
