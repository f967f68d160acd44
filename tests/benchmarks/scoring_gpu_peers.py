"""What bench_gpu compares our engines with: the paper's padded batches, padding-free batches and padded classifiers."""

import importlib.util
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from pipeline.models.packing import Completion
from tests.benchmarks.scoring_gpu import Pair
from tests.benchmarks.scoring_peers import BATCH_PAIRS, by_length, paper_scores

Score = Callable[[Sequence[Pair]], np.ndarray]  # (2, pairs)

CLASSIFIER_BATCH = 8
BATCHES = (2, 4, 8, 16)  # pairs together, of which a peer's best is chosen
HEAD_ROWS = 2048
TORCH_FLASH = "torch_varlen"


def in_length_order(score: Score) -> Score:
    """The same pairs, sorted by length."""

    def ordered(pairs: Sequence[Pair]) -> np.ndarray:
        order = by_length(pairs)
        return score([pairs[i] for i in order])[:, np.argsort(order)]

    return ordered


def paper(model: Any, batch: int = BATCH_PAIRS) -> Score:
    """The paper's form."""
    return lambda pairs: paper_scores(model, pairs, batch)


def classifier(model: Any, batch: int = CLASSIFIER_BATCH) -> Score:
    """A classifier's own forward over padded dialogues."""

    @torch.inference_mode()
    def score(pairs: Sequence[Pair]) -> np.ndarray:
        dialogues = [completion.ids for pair in pairs for completion in pair.group]
        found = []
        for begin in range(0, len(dialogues), batch):
            some = dialogues[begin : begin + batch]
            ids = torch.full((len(some), max(map(len, some))), model.config.pad_token_id)
            for row, tokens in enumerate(some):
                ids[row, : len(tokens)] = torch.as_tensor(tokens)
            mask = (ids != model.config.pad_token_id).long()
            ids, mask = ids.to(model.device), mask.to(model.device)
            found.append(model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float().cpu())
        return torch.cat(found).numpy().reshape(-1, 2).T

    return score


def padding_free(model: Any, token_budget: int) -> Score:
    """Transformers' own padding-free forward: sequences end to end, told apart by flash attention.

    With the flash-attn package where it is installed, else with the kernel of it that torch holds.
    """
    name = "flash_attention_2" if importlib.util.find_spec("flash_attn") else TORCH_FLASH

    @torch.inference_mode()
    def score(pairs: Sequence[Pair]) -> np.ndarray:
        before = model.config._attn_implementation
        model.set_attn_implementation(name)
        try:
            sequences = [completion for pair in pairs for completion in pair.group]
            return (
                np.concatenate([_packed_sums(model, some) for some in _steps(sequences, token_budget)]).reshape(-1, 2).T
            )
        finally:
            model.set_attn_implementation(before)

    return score


def _steps(sequences: Sequence[Completion], token_budget: int) -> list[list[Completion]]:
    steps: list[list[Completion]] = [[]]
    size = 0
    for sequence in sequences:
        size += len(sequence.ids)
        if steps[-1] and size > token_budget:
            steps.append([])
            size = len(sequence.ids)
        steps[-1].append(sequence)
    return steps


def _packed_sums(model: Any, sequences: Sequence[Completion]) -> np.ndarray:
    device = model.device
    lengths = [len(s.ids) for s in sequences]
    offsets = [0, *accumulate(lengths)]
    ids = torch.as_tensor(np.concatenate([s.ids for s in sequences]), dtype=torch.int64).to(device)
    positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
    ends = torch.tensor(offsets, dtype=torch.int32).to(device)
    told = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    targets = np.concatenate([np.arange(at + s.start, at + n) for at, s, n in zip(offsets, sequences, lengths)])  # noqa: B905
    owners = np.repeat(np.arange(len(sequences)), [n - s.start for s, n in zip(sequences, lengths, strict=True)])
    rows = torch.as_tensor(targets - 1).to(device)
    inputs = {"input_ids": ids[None], "position_ids": positions[None], "use_cache": False, "logits_to_keep": rows}
    logits = model(**inputs, **told).logits[0]
    wanted = ids[rows + 1][:, None]
    chunks = zip(logits.split(HEAD_ROWS), wanted.split(HEAD_ROWS), strict=True)
    logp = [some.gather(1, t)[:, 0].float() - torch.logsumexp(some.float(), 1) for some, t in chunks]
    return np.bincount(owners, weights=torch.cat(logp).double().cpu().numpy(), minlength=len(sequences))


def _torch_flash(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Flash attention of torch, called as transformers calls flash-attn."""
    from torch.nn.attention.varlen import varlen_attn

    states = [s[0].transpose(0, 1).contiguous() for s in (query, key, value)]
    ends, longest = options["cu_seq_lens_q"], options["max_length_q"]
    causal: Any = {"window_size": (-1, 0)} | ({"enable_gqa": True} if _asks_for_gqa() else {})
    attended: Any = varlen_attn(*states, ends, ends, longest, longest, scale=options.get("scaling"), **causal)
    return attended[None], None


def _asks_for_gqa() -> bool:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


AttentionInterface.register(TORCH_FLASH, _torch_flash)
