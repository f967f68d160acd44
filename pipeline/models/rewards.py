"""Scores of dialogues under a sequence classifier.

Decoders with a linear `score` head are run in packed steps: dialogues of one prompt share their common prefix, and the
head reads one row a dialogue. Everything else (encoders, custom classes) is run one dialogue at a time. Either way the
number is the model's own: its `score` output if it has one, else its only logit. With names for several heads, it is
all of its `rewards` output if it has one, as those of ArmoRM and QRM do, else all of its logits.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.errors import ModelError
from pipeline.models.engine import Engine
from pipeline.models.loading import load_classifier
from pipeline.models.memory import Numbers, from_device
from pipeline.models.packing import ROW_MULTIPLE, Completion, Float64Array, Group, last_token_step
from pipeline.models.scores import wrong_number

logger = logging.getLogger(__name__)


class ClassifierEngine(Engine):
    """Gives every dialogue its reward under one sequence classifier, or several; a `start` is not read.

    Arguments as in Engine; shape: (number of heads,), or () for one reward. Another number of logits is a ModelError.
    """

    _load_model = staticmethod(load_classifier)
    _quantity = "reward"

    def _attach_head(self) -> bool:
        head = getattr(self._backbone.model, "score", None)
        if not isinstance(head, torch.nn.Linear):
            if self._compiled:
                logger.warning("%s has no packed steps: compile does nothing for it", self._backbone.name)
            return False
        self._check_number(head.out_features)
        self._weight = head.weight.detach()
        self._bias = None if head.bias is None else head.bias.detach()
        pad_id = getattr(self._backbone.config, "pad_token_id", None)
        self._pad_id = -1 if pad_id is None else pad_id
        return True

    def _packed(self, groups: Sequence[Group]) -> Numbers:
        # Transformers' classifiers read the last token that is not the padding token.
        real = [[np.flatnonzero(dialogue.ids != self._pad_id) for dialogue in group] for group in groups]
        last = [[int(indices[-1]) if len(indices) else 0 for indices in group] for group in real]
        step = last_token_step(groups, last, self._row_multiple, self._budget.sharing)
        hidden = self._backbone.hidden_rows(step)
        # Row by row, in float32: a few logits are too little work for a matrix product. GPUs sum many rows in another
        # order than few, so the number of rows is fixed.
        weights, padded = self._weight.float(), F.pad(hidden, (0, 0, 0, -len(hidden) % ROW_MULTIPLE))
        blocks = torch.split(padded, ROW_MULTIPLE)
        sums = [torch.cat([(rows.float() * weight).sum(dim=1) for rows in blocks]) for weight in weights]
        bias = 0.0 if self._bias is None else self._bias.float()
        numbers = from_device(torch.stack(sums, dim=1)[: len(hidden)] + bias)
        return lambda: numbers()[step.target_rows].reshape(-1, *self._shape)

    def _plain(self, completion: Completion) -> float | Float64Array:
        output = self._backbone.forward_one(completion)
        own = getattr(output, "rewards" if self._shape else "score", None)
        values = output.logits if own is None else own
        self._check_number(values.numel())
        found: Float64Array = values.double().cpu().numpy().reshape(self._shape)
        return found

    @staticmethod
    def _shape_of(section: Any) -> tuple[int, ...]:
        return () if section.heads is None else (len(section.heads),)

    def _check_number(self, num_logits: int) -> None:
        wanted = self._shape[0] if self._shape else 1
        if num_logits != wanted:
            raise ModelError(wrong_number(type(self._backbone.model).__name__, num_logits, wanted))
