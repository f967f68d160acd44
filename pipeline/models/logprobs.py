"""Summed log-probabilities of completions under a causal language model.

`LogprobEngine` runs packed steps (see packing) and computes logits only in the rows that predict a response token, in
float32 whatever the model's dtype. Sums over tokens are float64. A completion's sum depends on the model and its own
group alone, not on the budget, the order or the other groups: to the bit on CPU, where a mixture of experts may move by
a rounding, and half precision where the CPU has tiles (see cpu).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.drops import Reason
from pipeline.models.agreement import Disagreement
from pipeline.models.backbone import Backbone, Ways
from pipeline.models.memory import Numbers
from pipeline.models.packing import ROW_MULTIPLE, Completion, Float64Array, Group, Int64Array, Step, response_step
from pipeline.models.prompts import TokenizedPair
from pipeline.models.transfer import Coming, to_device

_HEAD_BYTES_CPU: Final = 128 << 20
_HEAD_BYTES_GPU: Final = 512 << 20
_CACHE_ROWS: Final = 8  # rows of logits that a CPU core keeps in its cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """One entry a sequence, in the order of the groups.

    Attributes:
        sum_logp: natural log-probability of the response tokens, summed, float64.
        num_tokens: how many there are, int64.
        left_out: why a sequence has no sum but NaN, by its index: does_not_fit_memory or longer_than_model.
    """

    sum_logp: Float64Array
    num_tokens: Int64Array
    left_out: Mapping[int, Reason]


class LogprobEngine:
    """Scores completions under one causal language model.

    Args:
        model: a transformers causal LM in evaluation mode, or a peft model around one. It is run in the
            dtype of its weights; `loading` gives one in a dtype that this CPU computes in.
        token_budget: most tokens in one forward; a longer group runs alone.
        fp8: score with the decoder's linear layers in 8 bits (see fp8).
        compiled: run the decoder's layers compiled (see compiled).
        deterministic: pad every forward to one shape (see backbone).
    """

    def __init__(
        self,
        model: Any,
        token_budget: int = 32768,
        *,
        fp8: bool = False,
        compiled: bool = False,
        deterministic: bool = False,
    ) -> None:
        self._backbone = Backbone(model, token_budget, fp8=fp8, compiled=compiled, deterministic=deterministic)
        self._head = _Head(self._backbone, compiled=compiled)
        self._ways = Ways(packed=self._packed_sums, plain=self._plain_sum, num_read=_num_read)
        if self._backbone.model.get_output_embeddings() is not None:
            with torch.inference_mode():
                self._backbone.choose_kernel(self._ways)

    @property
    def kernel(self) -> str:
        """How it runs: sdpa or varlen (packed steps), or naive (one sequence at a time)."""
        return self._backbone.kernel

    @torch.inference_mode()
    def score(self, groups: Sequence[Group]) -> Scores:
        """Sum the log-probabilities of every completion's tokens from its `start` on.

        A completion without response tokens gets 0.0 and 0. Non-finite sums are returned as they are.

        Raises:
            ModelError: a response without a token before it.
        """
        found = self._backbone.score(groups, self._ways)
        lengths = [_num_read(c) for group in groups for c in group]
        return Scores(sum_logp=found.values, num_tokens=np.asarray(lengths, dtype=np.int64), left_out=found.left_out)

    @torch.inference_mode()
    def disagreement(self, groups: Sequence[Group]) -> Disagreement | None:
        """Compare packed steps with the model's own forward on a few of the groups; None if they agree."""
        return self._backbone.disagreement(groups, self._ways)

    def _packed_sums(self, groups: Sequence[Group]) -> Numbers:
        step = response_step(groups, self._backbone.row_multiple)
        logp = self._head.logp(self._backbone.hidden_rows(step), step)
        return lambda: np.bincount(step.target_sequences, weights=logp(), minlength=step.num_sequences).astype(float)

    def _plain_sum(self, completion: Completion) -> float:
        step = response_step([[completion]])
        logits = self._backbone.forward_one(completion).logits[0]
        logits = logits.index_select(0, to_device(step.rows, logits.device)).float()
        targets = to_device(step.targets, logits.device)[:, None]
        logp = logits.gather(1, targets).squeeze(1).double() - torch.logsumexp(logits, dim=1).double()
        return float(logp.sum())


class _Head:
    """The language-model head on selected rows: float32 logits, chunk by chunk in one buffer."""

    def __init__(self, backbone: Backbone, *, compiled: bool) -> None:
        self._module = backbone.model.get_output_embeddings()
        self._device = backbone.device
        self._dtype = backbone.dtype
        config = backbone.config
        self._scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        if type(self._module) is torch.nn.Linear:
            # Products of half-precision numbers are exact in float32; CPUs have no mixed matrix product, so copy.
            weight = self._module.weight.detach()
            self._weight = weight.float() if self._device.type == "cpu" else weight
            self._bias = None if self._module.bias is None else self._module.bias.detach().float()
        self._buffer: torch.Tensor | None = None
        # Where every row is to be computed the same way, the last chunk has as many as the others to its end.
        self._keeps_padding = backbone.deterministic
        self._row_multiple = self._chunk_rows() if backbone.deterministic else ROW_MULTIPLE
        self._logsumexp: Callable[[torch.Tensor], torch.Tensor] | None = None
        if compiled and self._device.type != "cpu":
            # For one shape, that of a whole chunk: compiled for any number of rows it takes four times as long.
            self._logsumexp = torch.compile(_logsumexp, dynamic=False)

    def logp(self, hidden: torch.Tensor, step: Step) -> Numbers:
        """Starts on the log-probability of each target of a step, shape (N,), from its hidden rows, shape (R, d)."""
        places, found = [np.empty(0, dtype=np.int64)], [hidden.new_empty(0, dtype=torch.float64)]
        chunk = self._chunk_rows()
        for begin in range(0, len(hidden), chunk):
            logits = self._logits(hidden[begin : begin + chunk])
            chosen = np.flatnonzero((step.target_rows >= begin) & (step.target_rows < begin + len(logits)))
            rows = to_device(step.target_rows[chosen] - begin, self._device)
            found.append(self._log_probs(logits, rows, to_device(step.targets[chosen], self._device)))
            places.append(chosen)
        coming, order = Coming(torch.cat(found)), np.argsort(np.concatenate(places))
        return lambda: coming.numpy()[order]

    def _chunk_rows(self) -> int:
        vocabulary = int(self._module.weight.shape[0])
        limit = _HEAD_BYTES_CPU if self._device.type == "cpu" else _HEAD_BYTES_GPU
        return max(ROW_MULTIPLE, limit // (4 * vocabulary) // ROW_MULTIPLE * ROW_MULTIPLE)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        num_rows = len(hidden)
        hidden = F.pad(hidden, (0, 0, 0, -num_rows % self._row_multiple))
        if self._weight is None:
            logits: torch.Tensor = self._module(hidden.to(self._dtype)).float()
        elif self._device.type == "cpu":
            with _bfloat16_products(enabled=self._dtype == torch.bfloat16):
                logits = torch.mm(hidden.float(), self._weight.t(), out=self._rows(len(hidden)))
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
        return logits if self._keeps_padding else logits[:num_rows]

    def _log_probs(self, logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probability of each target, float64, shape (N,), from its row of `logits`, shape (R, V)."""
        if self._device.type == "cpu":
            target_logits = logits[rows, targets].double()
            return target_logits - _logsumexp_(logits)[rows].double()
        if self._logsumexp is not None and len(logits) == self._chunk_rows():
            return logits[rows, targets].double() - self._logsumexp(logits)[rows].double()
        return logits.log_softmax(dim=1)[rows, targets].double()

    def _rows(self, num_rows: int) -> torch.Tensor:
        assert self._weight is not None  # noqa: S101
        if self._buffer is None:
            self._buffer = torch.empty(self._chunk_rows(), self._weight.shape[0])
        return self._buffer[:num_rows]


@contextmanager
def _bfloat16_products(*, enabled: bool) -> Iterator[None]:
    """Let oneDNN multiply float32 matrices as bfloat16 where the CPU gains by it; sums and output stay float32."""
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


def _logsumexp(logits: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exponentials of each row, shape (R,)."""
    return torch.logsumexp(logits, dim=1)


def _logsumexp_(logits: torch.Tensor) -> torch.Tensor:
    """The same, a few rows at a time and in the memory of `logits`, which it overwrites."""
    found = []
    for begin in range(0, len(logits), _CACHE_ROWS):
        rows = logits[begin : begin + _CACHE_ROWS]
        highest = rows.amax(dim=1, keepdim=True)
        found.append(rows.sub_(highest).exp_().sum(dim=1).log_() + highest[:, 0])
    return torch.cat(found)


def pair_groups(pairs: Sequence[TokenizedPair]) -> list[Group]:
    """A group of two for each pair: chosen, then rejected."""
    return [
        (
            Completion(ids=pair.chosen_ids, start=pair.chosen_start),
            Completion(ids=pair.rejected_ids, start=pair.rejected_start),
        )
        for pair in pairs
    ]


def score_pairs(engine: LogprobEngine, pairs: Sequence[TokenizedPair]) -> tuple[Float64Array, Float64Array]:
    """Summed log-probabilities of the chosen and of the rejected responses, one entry a pair, float64."""
    sums: npt.NDArray[np.float64] = engine.score(pair_groups(pairs)).sum_logp.reshape(-1, 2)
    return sums[:, 0].copy(), sums[:, 1].copy()


def _num_read(completion: Completion) -> int:
    return len(completion.ids) - completion.start
