"""Scores of dialogues under a sequence classifier.

Decoders with a linear `score` head are run in packed steps: dialogues of one prompt share their common prefix, and the
head reads one row a dialogue. Everything else (encoders, custom classes) is run one dialogue at a time. Either way the
number is the model's own: its `score` output if it has one, else its only logit.
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
from pipeline.models.packing import ROW_MULTIPLE, Completion, Group, last_token_step

logger = logging.getLogger(__name__)


class ClassifierEngine(Engine):
    """Gives every dialogue its reward under one sequence classifier; a `start` is not read.

    Arguments as in Engine. A classifier that has more than one logit is a ModelError.
    """

    _load_model = staticmethod(load_classifier)
    _quantity = "reward"

    def _attach_head(self) -> bool:
        head = getattr(self._backbone.model, "score", None)
        if not isinstance(head, torch.nn.Linear):
            if self._compiled:
                logger.warning("%s has no packed steps: compile does nothing for it", self._backbone.name)
            return False
        if head.out_features != 1:
            raise ModelError(_one_logit_wanted(self._backbone.model, head.out_features))
        self._weight = head.weight.detach()[0]
        self._bias = None if head.bias is None else head.bias.detach()
        pad_id = getattr(self._backbone.config, "pad_token_id", None)
        self._pad_id = -1 if pad_id is None else pad_id
        return True

    def _packed(self, groups: Sequence[Group]) -> Numbers:
        # Transformers' classifiers read the last token that is not the padding token.
        real = [[np.flatnonzero(dialogue.ids != self._pad_id) for dialogue in group] for group in groups]
        last = [[int(indices[-1]) if len(indices) else 0 for indices in group] for group in real]
        step = last_token_step(groups, last, self._row_multiple)
        hidden = self._backbone.hidden_rows(step)
        # Row by row, in float32: one logit is too little work for a matrix product. GPUs sum many rows in another order
        # than few, so the number of rows is fixed.
        weight, padded = self._weight.float(), F.pad(hidden, (0, 0, 0, -len(hidden) % ROW_MULTIPLE))
        sums = torch.cat([(rows.float() * weight).sum(dim=1) for rows in torch.split(padded, ROW_MULTIPLE)])
        bias = 0.0 if self._bias is None else self._bias.float()
        numbers = from_device(sums[: len(hidden)] + bias)
        return lambda: numbers()[step.target_rows]

    def _plain(self, completion: Completion) -> float:
        output = self._backbone.forward_one(completion)
        score = getattr(output, "score", None)
        values = output.logits if score is None else score
        if values.numel() != 1:
            raise ModelError(_one_logit_wanted(self._backbone.model, values.numel()))
        return float(values.double())


def _one_logit_wanted(model: Any, num_logits: int) -> str:
    return (
        f"{type(model).__name__} gives {num_logits} logits a dialogue; a reward model gives one. "
        "Name a model trained as a reward model (num_labels 1), or one whose output has a `score`."
    )
