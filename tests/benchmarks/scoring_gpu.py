"""Models and pairs of bench_gpu: Llama-3-8B's architecture with random weights, synthetic lengths, and FLOP counts.

Weights are normal, not zero: a GPU that multiplies zeros is some 13% faster. Throughput does not depend on them
otherwise. Imports torch, transformers and numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.models.packing import Completion, Group

LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}
TINY = LLAMA_3_8B | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

# Dense bfloat16 TFLOP/s by the makers' data sheets, by a part of the device's name.
PEAK_TFLOPS = {"H200": 989.5, "H100": 989.5, "A100": 312.0}


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean tokens of prompt and of each response; lognormal, as in preference data."""

    prompt: int
    response: int
    sigma: float = 0.6

    def scaled(self, factor: float) -> "Lengths":
        return Lengths(prompt=round(self.prompt * factor), response=round(self.response * factor), sigma=self.sigma)


# Lengths like UltraFeedback's, like HH-RLHF's, and of long dialogues.
CASES = {
    "uf": Lengths(prompt=200, response=350),
    "hh": Lengths(prompt=150, response=47),
    "long": Lengths(prompt=1500, response=300, sigma=0.3),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A tokenised pair: prompt and response of each side, and where the responses begin."""

    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    chosen_start: int
    rejected_start: int

    @property
    def group(self) -> Group:
        return [
            Completion(ids=self.chosen_ids, start=self.chosen_start),
            Completion(ids=self.rejected_ids, start=self.rejected_start),
        ]


def pairs_of(lengths: Lengths, count: int, vocab_size: int) -> list[Pair]:
    """Pairs of random tokens; the vocabulary's last token is left for padding."""
    rng = np.random.default_rng(0)

    def draw(mean: int) -> np.ndarray:
        sizes = rng.lognormal(np.log(mean) - lengths.sigma**2 / 2, lengths.sigma, count)
        return np.clip(sizes, 4, 4000).astype(int)

    def tokens(size: int) -> np.ndarray:
        return rng.integers(0, vocab_size - 1, size, dtype=np.int32)

    made = []
    for size, *sides in zip(draw(lengths.prompt), draw(lengths.response), draw(lengths.response), strict=True):
        prompt = tokens(size)
        chosen, rejected = (np.concatenate([prompt, tokens(side)]) for side in sides)
        made.append(Pair(chosen_ids=chosen, rejected_ids=rejected, chosen_start=size, rejected_start=size))
    return made


def random_model(shape: dict[str, Any], seed: int, device: str, *, classifier: bool = False) -> Any:
    """A model in bfloat16 with normal weights, made on the device."""
    import transformers

    auto = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    options = {"num_labels": 1} if classifier else {}
    config = transformers.LlamaConfig(**shape, pad_token_id=shape["vocab_size"] - 1, **options)
    torch.manual_seed(seed)
    with torch.device(device):
        model = auto.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(requires_grad=False)


def flops(config: Any, pairs: Sequence[Pair], *, head: bool) -> float:
    """FLOPs that scoring pairs takes at least: every distinct prefix once, no padding, head on response rows only.

    2 FLOPs a weight and token in the layers' matrices, but for the last feed-forward on rows that no head reads;
    4 L d a visible (query, key); 2 d V a scored row.
    """
    d, layers = config.hidden_size, config.num_hidden_layers
    kv = d * config.num_key_value_heads // config.num_attention_heads
    body = 2 * layers * (2 * d * d + 2 * d * kv + 3 * d * config.intermediate_size)
    total = 0.0
    for pair in pairs:
        prompt = pair.chosen_start
        sides = [len(pair.chosen_ids) - prompt, len(pair.rejected_ids) - prompt]
        seen = sum(n * (n + 1) // 2 + n * prompt for n in sides) + prompt * (prompt + 1) // 2
        tokens, rows = prompt + sum(sides), sum(sides) if head else 0
        unread = tokens - (rows or len(sides))
        total += tokens * body - unread * 6 * d * config.intermediate_size
        total += 4 * layers * d * seen + rows * 2 * d * config.vocab_size
    return total
