"""Rewards of a sequence classifier by vLLM, for reward models larger than one GPU.

vLLM gets token ids and gives the logit of the last one, and is told not to put a sigmoid on it. For a model that
fits one GPU `ClassifierEngine` is faster: it reads each prompt only once.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pipeline.config import VllmReward
from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.packing import Group
from pipeline.models.scores import Scores
from pipeline.models.vllm_scoring import VllmScoringEngine


class VllmRewardEngine(VllmScoringEngine):
    """Gives every dialogue its reward under one classifier that vLLM holds, as `ClassifierEngine` does.

    Raises as VllmScoringEngine.
    """

    otherwise: ClassVar[str] = "set backend: classifier for a reward model that fits one GPU"

    def __init__(self, model: VllmReward) -> None:
        super().__init__(model, model.max_length, runner="pooling", convert="classify")
        self._parameters = self._vllm.PoolingParams(use_activation=False)

    def score(self, groups: Sequence[Group]) -> Scores:
        """The rewards. Those that are not finite are returned as they are.

        Raises a ModelError if the engine died, or the model gives more than one logit.
        """
        dialogues = [dialogue for group in groups for dialogue in group]
        long = np.asarray([len(dialogue.ids) > self._max_length for dialogue in dialogues], dtype=bool)
        values = np.full(len(dialogues), np.nan)
        asked = np.flatnonzero(~long)
        if len(asked):
            outputs = self._outputs(
                lambda engine, prompts: engine.classify(prompts, pooling_params=self._parameters, use_tqdm=False),
                [dialogues[i] for i in asked],
            )
            logits = [output.outputs.probs for output in outputs]
            if len(logits[0]) != 1:
                raise ModelError(
                    f"{self._model.model} gives {len(logits[0])} logits a dialogue in vLLM; a reward model gives one. "
                    "Name a model trained as a reward model (num_labels 1)."
                )
            values[asked] = [one[0] for one in logits]
        return Scores(values=values, left_out=dict.fromkeys(np.flatnonzero(long).tolist(), Reason.LONGER_THAN_MODEL))
