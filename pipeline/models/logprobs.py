"""Summed log-probabilities of completions under a causal language model.

`LogprobEngine` computes logits only in the rows that predict a response token, in float32 whatever the model's dtype.
Sums over tokens are float64. On CPU a completion's sum depends, to the bit, on the model and its own group only, not on
the budget, the order or the other groups. Exceptions: a mixture of experts may differ by a rounding, and so may half
precision on a CPU with tiles.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.models.engine import Engine
from pipeline.models.memory import Numbers, from_device, to_device
from pipeline.models.packing import ROW_MULTIPLE, Completion, Group, Int64Array, Step, response_step
from pipeline.models.shared import load_shared

_HEAD_BYTES_CPU: Final = 128 << 20
_HEAD_BYTES_GPU: Final = 512 << 20
_CACHE_ROWS: Final = 8  # rows of logits that a CPU core keeps in its cache


class LogprobEngine(Engine):
    """Sums the log-probabilities of every completion's tokens from its `start` on, under one causal language model.

    A completion without response tokens gets 0.0. One whose response has no token before it is a ModelError.
    Arguments as in Engine.
    """

    _load_model = staticmethod(load_shared)
    _quantity = "mean log-prob per token"

    def _attach_head(self) -> bool:
        backbone, head = self._backbone, self._backbone.model.get_output_embeddings()
        if getattr(head, "weight", None) is None:
            return False
        self._module = head
        self._on_cpu = backbone.device.type == "cpu"
        config = backbone.config
        self._scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        if type(head) is torch.nn.Linear:
            # Products of half-precision numbers are exact in float32; CPUs have no mixed matrix product, so copy.
            self._weight = head.weight.detach().float() if self._on_cpu else head.weight.detach()
            self._bias = None if head.bias is None else head.bias.detach().float()
        limit = _HEAD_BYTES_CPU if self._on_cpu else _HEAD_BYTES_GPU
        self._chunk_rows = max(ROW_MULTIPLE, limit // (4 * int(head.weight.shape[0])) // ROW_MULTIPLE * ROW_MULTIPLE)
        self._buffer: torch.Tensor | None = None  # of the logits of a chunk, on CPU
        self._logsumexp: Callable[[torch.Tensor], torch.Tensor] | None = None
        if self._compiled and not self._on_cpu:
            # For the shape of a whole chunk only: compiled for any number of rows it takes four times as long.
            self._logsumexp = torch.compile(partial(torch.logsumexp, dim=1), dynamic=False)
        return True

    def _num_read(self, groups: Sequence[Group]) -> Int64Array:
        return np.asarray([max(1, len(c.ids) - c.start) for group in groups for c in group], dtype=np.int64)

    def _packed(self, groups: Sequence[Group]) -> Numbers:
        step = response_step(groups, self._row_multiple, self._budget.sharing)
        logp = self._logp(self._backbone.hidden_rows(step), step)
        return lambda: np.bincount(step.target_sequences, weights=logp(), minlength=step.num_sequences).astype(float)

    def _plain(self, completion: Completion) -> float:
        step = response_step([[completion]])
        logits = self._backbone.forward_one(completion).logits[0]
        logits = logits.index_select(0, to_device(step.rows, logits.device)).float()
        targets = to_device(step.targets, logits.device)[:, None]
        logp = logits.gather(1, targets).squeeze(1).double() - torch.logsumexp(logits, dim=1).double()
        return float(logp.sum())

    def _logp(self, hidden: torch.Tensor, step: Step) -> Numbers:
        """Start to compute the log-probability of each target of a step, shape (N,), from hidden rows, shape (R, d)."""
        places, found = [np.empty(0, dtype=np.int64)], [hidden.new_empty(0, dtype=torch.float64)]
        device = hidden.device
        for begin in range(0, len(hidden), self._chunk_rows):
            logits = self._logits(hidden[begin : begin + self._chunk_rows])
            chosen = np.flatnonzero((step.target_rows >= begin) & (step.target_rows < begin + len(logits)))
            rows = to_device(step.target_rows[chosen] - begin, device)
            found.append(self._log_probs(logits, rows, to_device(step.targets[chosen], device)))
            places.append(chosen)
        numbers, order = from_device(torch.cat(found)), np.argsort(np.concatenate(places))
        return lambda: numbers()[order]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of hidden rows, float32; of a whole chunk if every row must be computed the same way."""
        num_rows, multiple = len(hidden), self._chunk_rows if self._deterministic else ROW_MULTIPLE
        hidden = F.pad(hidden, (0, 0, 0, -num_rows % multiple))
        if self._weight is None:
            logits: torch.Tensor = self._module(hidden.to(self._backbone.dtype)).float()
        elif self._on_cpu:
            if self._buffer is None:
                self._buffer = torch.empty(self._chunk_rows, self._weight.shape[0])
            with _bfloat16_products(enabled=self._backbone.dtype == torch.bfloat16):
                logits = torch.mm(hidden.float(), self._weight.t(), out=self._buffer[: len(hidden)])
        elif hidden.dtype == torch.float32:
            logits = hidden @ self._weight.t()
        else:
            logits = torch.mm(hidden, self._weight.t(), out_dtype=torch.float32)
        if self._bias is not None:
            logits += self._bias
        if self._scale != 1.0:
            logits *= self._scale
        if self._softcap is not None:
            logits = logits.div_(self._softcap).tanh_().mul_(self._softcap)
        return logits if self._deterministic else logits[:num_rows]

    def _log_probs(self, logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probability of each target, float64, shape (N,), from its row of `logits`, shape (R, V)."""
        if self._on_cpu:
            target_logits = logits[rows, targets].double()
            return target_logits - _logsumexp_(logits)[rows].double()
        if self._logsumexp is not None and len(logits) == self._chunk_rows:
            return logits[rows, targets].double() - self._logsumexp(logits)[rows].double()
        return logits.log_softmax(dim=1)[rows, targets].double()


@contextmanager
def _bfloat16_products(*, enabled: bool) -> Iterator[None]:
    """Let oneDNN multiply float32 matrices as bfloat16 if the CPU is faster so. Sums and output stay float32."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not enabled or settings is None:
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _logsumexp_(logits: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exponentials of each row, a few rows at a time, in the memory of `logits`."""
    found = []
    for begin in range(0, len(logits), _CACHE_ROWS):
        rows = logits[begin : begin + _CACHE_ROWS]
        highest = rows.amax(dim=1, keepdim=True)
        found.append(rows.sub_(highest).exp_().sum(dim=1).log_() + highest[:, 0])
    return torch.cat(found)
