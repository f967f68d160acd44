"""How the paper's code scores pairs, written anew after its description, and the clock of the scoring benchmarks.

The paper's batching: chosen and rejected padded together, 4 pairs a batch in the order of the data, logits of every
position in the model's dtype, a log-softmax of them for the mean and another for the sum, two means of the logits.
Needs torch and numpy only.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from pipeline.models.prompts import TokenizedPair

BATCH_PAIRS = 4
PADDING, IGNORED = 2, -100

Sums = np.ndarray  # (2, pairs): chosen and rejected, summed log-probabilities


@dataclass(kw_only=True)
class Timed:
    """What one engine gave and took."""

    name: str
    tokens: int = 0
    sums: Sums | None = None
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def show(self) -> None:
        cpu, wall = statistics.median(self.cpu_s), statistics.median(self.wall_s)
        print(f"{self.name:<40}{cpu:>9.2f}{wall:>9.2f}{self.tokens or '':>10}", flush=True)


@contextmanager
def timing(into: Timed) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into.cpu_s.append(time.process_time() - cpu)
    into.wall_s.append(time.perf_counter() - wall)


def timed_run(timed: Timed, score: Callable[[], Sums]) -> None:
    with timing(timed):
        timed.sums = score()


def padded(batch: "Sequence[TokenizedPair]") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels of the chosen sequences over the rejected ones, right-padded."""
    sides = [(p.chosen_ids, p.chosen_start) for p in batch] + [(p.rejected_ids, p.rejected_start) for p in batch]
    longest = max(len(ids) for ids, _ in sides)
    ids = torch.full((len(sides), longest), PADDING)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, (tokens, start) in enumerate(sides):
        ids[row, : len(tokens)] = torch.as_tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, start : len(tokens)] = torch.as_tensor(tokens[start:])
    return ids, mask, labels


def padded_tokens(pairs: "Sequence[TokenizedPair]") -> int:
    return sum(padded(pairs[i : i + BATCH_PAIRS])[0].numel() for i in range(0, len(pairs), BATCH_PAIRS))


def by_length(pairs: "Sequence[TokenizedPair]") -> list[int]:
    return sorted(range(len(pairs)), key=lambda i: max(len(pairs[i].chosen_ids), len(pairs[i].rejected_ids)))


def summed(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per sequence: summed log-probability and number of labelled tokens, all positions log-softmaxed."""
    labels, logits = labels[:, 1:].clone(), logits[:, :-1]
    scored = labels != IGNORED
    labels[~scored] = 0
    logp = logits.log_softmax(-1).gather(2, labels[:, :, None])[:, :, 0]
    return (logp * scored).sum(-1), scored.sum(-1)


@torch.no_grad()
def paper_scores(model: Any, pairs: "Sequence[TokenizedPair]", batch_pairs: int = BATCH_PAIRS) -> Sums:
    found = []
    for begin in range(0, len(pairs), batch_pairs):
        batch = pairs[begin : begin + batch_pairs]
        ids, mask, labels = (t.to(model.device) for t in padded(batch))
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        total, count = summed(logits, labels)
        _ = total / count
        sums, _ = summed(logits, labels)
        for side in logits.split(len(batch)):
            side.mean()
        found.append(sums.float().view(2, -1).cpu().numpy())
    return np.concatenate(found, axis=1)


@torch.no_grad()
def paper_means(model: Any, pairs: "Sequence[TokenizedPair]") -> tuple[np.ndarray, np.ndarray]:
    """Mean log-probability per token, (2, pairs): in the paper's form, and from float32 copies of the same logits."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for begin in range(0, len(pairs), BATCH_PAIRS):
        ids, mask, labels = padded(pairs[begin : begin + BATCH_PAIRS])
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        for into, values in zip(found, (logits, logits.float()), strict=True):
            total, count = summed(values, labels)
            into.append((total / count).double().view(2, -1).numpy())
    return np.concatenate(found[0], axis=1), np.concatenate(found[1], axis=1)
