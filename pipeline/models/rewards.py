"""Scores of dialogues under a sequence classifier.

Decoders with a linear `score` head are run in packed steps, as log-probabilities are: both dialogues of a pair share
their common prefix, and the head reads one row a dialogue. Everything else (encoders, custom classes) is run one
dialogue at a time. Either way the number is the model's own: its `score` output where it has one, else its only logit.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.agreement import Disagreement
from pipeline.models.backbone import Backbone, Ways
from pipeline.models.memory import Numbers
from pipeline.models.packing import ROW_MULTIPLE, Completion, Float64Array, Group, last_token_step
from pipeline.models.prompts import TokenizedDialogues
from pipeline.models.transfer import Coming

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rewards:
    """One entry a dialogue, in the order of the groups.

    Attributes:
        reward: float64.
        left_out: why a dialogue has no reward but NaN, by its index: does_not_fit_memory or longer_than_model.
    """

    reward: Float64Array
    left_out: Mapping[int, Reason]


class ClassifierEngine:
    """Scores dialogues under one reward model.

    Args:
        model: a transformers sequence classifier in evaluation mode, or a peft model around one. It is run in the
            dtype of its weights; `loading` gives one in a dtype that this CPU computes in.
        token_budget: most tokens in one forward; a longer group runs alone.
        fp8: score with the decoder's linear layers in 8 bits (see fp8).
        compiled: run the decoder's layers compiled (see compiled).
        deterministic: pad every forward to one shape (see backbone).

    Raises:
        ModelError: the classifier has more than one logit.
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
        self._head = getattr(self._backbone.model, "score", None)
        self._ways = Ways(packed=self._packed_rewards, plain=self._plain_score)
        self._pad_id: int | None = getattr(self._backbone.config, "pad_token_id", None)
        if isinstance(self._head, torch.nn.Linear):
            if self._head.out_features != 1:
                raise ModelError(_one_logit_wanted(self._backbone.model, self._head.out_features))
            with torch.inference_mode():
                self._backbone.choose_kernel(self._ways)
        elif compiled:
            logger.warning("%s has no packed steps: compile does nothing for it", type(self._backbone.model).__name__)

    @property
    def kernel(self) -> str:
        """How it runs: sdpa or varlen (packed steps), or naive (one dialogue at a time)."""
        return self._backbone.kernel

    @torch.inference_mode()
    def score(self, groups: Sequence[Group]) -> Rewards:
        """Reward of every dialogue; its `start` is not read.

        Non-finite rewards are returned as they are.

        Raises:
            ModelError: the model returns no single score.
        """
        found = self._backbone.score(groups, self._ways)
        return Rewards(reward=found.values, left_out=found.left_out)

    @torch.inference_mode()
    def disagreement(self, groups: Sequence[Group]) -> Disagreement | None:
        """Compare packed steps with the model's own forward on a few of the groups; None if they agree."""
        return self._backbone.disagreement(groups, self._ways)

    def _packed_rewards(self, groups: Sequence[Group]) -> Numbers:
        last = [[self._last_index(c) for c in group] for group in groups]
        step = last_token_step(groups, last, self._backbone.row_multiple)
        hidden = self._backbone.hidden_rows(step)
        # Row by row, in float32: one logit is too little work for a matrix product. GPUs sum many rows in another order
        # than few, so there are always as many.
        weight, padded = self._head_weight(), F.pad(hidden, (0, 0, 0, -len(hidden) % ROW_MULTIPLE))
        sums = torch.cat([(rows.float() * weight).sum(dim=1) for rows in torch.split(padded, ROW_MULTIPLE)])
        coming = Coming(sums[: len(hidden)] + self._head_bias())
        return lambda: coming.numpy()[step.target_rows]

    def _plain_score(self, dialogue: Completion) -> float:
        output = self._backbone.forward_one(dialogue)
        score = getattr(output, "score", None)
        values = output.logits if score is None else score
        if values.numel() != 1:
            raise ModelError(_one_logit_wanted(self._backbone.model, values.numel()))
        return float(values.double())

    def _last_index(self, dialogue: Completion) -> int:
        """The row transformers' classifiers read: the last token that is not the padding token."""
        real = np.flatnonzero(dialogue.ids != self._pad_id) if self._pad_id is not None else [len(dialogue.ids) - 1]
        return int(real[-1]) if len(real) else 0

    def _head_weight(self) -> torch.Tensor:
        weight: torch.Tensor = self._backbone.model.score.weight
        return weight[0].float()

    def _head_bias(self) -> torch.Tensor | float:
        bias: torch.Tensor | None = self._backbone.model.score.bias
        return 0.0 if bias is None else bias.float()


def dialogue_groups(dialogues: Sequence[TokenizedDialogues]) -> list[Group]:
    """A group of two for each pair: the chosen dialogue, then the rejected one."""
    return [
        (Completion(ids=pair.chosen_ids, start=0), Completion(ids=pair.rejected_ids, start=0)) for pair in dialogues
    ]


def _one_logit_wanted(model: Any, num_logits: int) -> str:
    return (
        f"{type(model).__name__} gives {num_logits} logits a dialogue; a reward model gives one. "
        "Name a model trained as a reward model (num_labels 1), or one whose output has a `score`."
    )
