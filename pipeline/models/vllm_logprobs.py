"""Summed log-probabilities of completions by vLLM, for models larger than one GPU.

For a model that fits one GPU `LogprobEngine` is faster: it reads each prompt only once.

vLLM gets token ids and gives the log-probability of each of them (`prompt_logprobs=0`). It never reads its prefix cache
for that, so every number is computed. It also samples one token after each sequence, so a sequence must be one token
shorter than the model's longest.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.config import VllmModel
from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.packing import Completion, Group, check_predicted
from pipeline.models.scores import Scores
from pipeline.models.vllm_scoring import VllmScoringEngine


class VllmLogprobEngine(VllmScoringEngine):
    """Scores completions under one causal language model that vLLM holds, as `LogprobEngine` does.

    Args:
        model: the section of the model.
        max_length: most tokens of a sequence.

    Raises as VllmScoringEngine.
    """

    otherwise: ClassVar[str] = "set backend: torch for a model that fits one GPU"

    def __init__(self, model: VllmModel, max_length: int) -> None:
        super().__init__(model, max_length + 1)  # room for the token that is sampled
        self._limit = self._max_length - 1
        self._parameters = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)

    def score(self, groups: Sequence[Group]) -> Scores:
        """Sum the log-probabilities of every completion's tokens from its `start` on.

        A completion without response tokens gets 0.0. Sums that are not finite are returned as they are.

        Raises a ModelError if a response has no token before it, the engine died, or vLLM's answer lacks tokens.
        """
        check_predicted(groups)
        sequences = [c for group in groups for c in group]
        num_read = np.asarray([len(c.ids) - c.start for c in sequences], dtype=np.int64)
        long = np.asarray([len(c.ids) > self._limit for c in sequences], dtype=bool)
        sums = np.where(long | (num_read > 0), np.nan, 0.0)
        asked = np.flatnonzero(~long & (num_read > 0))
        sums[asked] = self._sums([sequences[i] for i in asked]) if len(asked) else []
        return Scores(values=sums, left_out=dict.fromkeys(np.flatnonzero(long).tolist(), Reason.LONGER_THAN_MODEL))

    def _sums(self, completions: Sequence[Completion]) -> list[float]:
        outputs = self._outputs(
            lambda engine, prompts: engine.generate(prompts, self._parameters, use_tqdm=False), completions
        )
        return [response_logp(output.prompt_logprobs, c) for output, c in zip(outputs, completions, strict=True)]


def response_logp(prompt_logprobs: Sequence[Any] | None, completion: Completion) -> float:
    """Sum of the log-probabilities of a completion's response, from vLLM's entries for the tokens of the sequence.

    Raises a ModelError if the number of entries is not the number of tokens, or an entry lacks its token.
    """
    ids = completion.ids.tolist()
    num_given = 0 if prompt_logprobs is None else len(prompt_logprobs)
    if prompt_logprobs is None or num_given != len(ids):
        raise ModelError(f"vLLM gave {num_given} log-probs for {len(ids)} tokens. Use another version of vLLM.")
    pairs = zip(prompt_logprobs[completion.start :], ids[completion.start :], strict=True)
    try:
        found = np.asarray([entry[token].logprob for entry, token in pairs], dtype=np.float64)
    except (KeyError, TypeError):
        raise ModelError("vLLM left the log-prob of a token out. Use another version of vLLM.") from None
    return float(found.sum())
