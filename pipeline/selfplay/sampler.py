"""What a sampling engine takes and gives.

A request holds token ids, never text to be tokenised again, and a seed for each response, so that its responses do
not depend on the requests beside it: but for rounding, which in half precision may follow the batch. A shard is
therefore always sampled as one call.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from pipeline.models.packing import Int32Array

FinishReason = Literal["stop", "length"]

GREEDY: Final = 1e-5
"""Temperatures below this take the likeliest token; all K responses are then the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample: K responses a request, each of at most `max_tokens` tokens. Temperature 0 is greedy."""

    num_responses: int
    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One prompt: its token ids, int32, generation prompt included, and a seed of 63 bits."""

    prompt_ids: Int32Array
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One sampled answer: its text without special tokens, its tokens, and whether it ended by itself.

    `num_tokens` counts all tokens sampled, that which ended the answer included.
    """

    text: str
    num_tokens: int
    finish_reason: FinishReason


class Sampler(Protocol):
    """A model that is loaded and answers."""

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Response]]:
        """K responses to each request, in the order of the requests."""

    def close(self) -> None:
        """Free the model."""


def seed_of(seed: int, *names: str) -> int:
    """A seed of 63 bits for one use of `seed`: the same for the same names, and unrelated for others."""
    text = "\x1f".join([str(seed), *names])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
