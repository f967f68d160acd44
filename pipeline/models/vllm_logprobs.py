"""Summed log-probabilities of completions by vLLM, for models larger than one GPU.

One `vllm.LLM` in one actor owns the processes of its tensor-parallel group, so a model on eight GPUs is one replica
like any other. (Transformers' `tp_plan` wants a process for each rank, and its sharded modules cannot run packed
steps.) For a model that fits one GPU `LogprobEngine` is faster: it reads each prompt only once.

vLLM gets token ids and gives the log-probability of each of them (`prompt_logprobs=0`). It never reads its prefix cache
for that, so every number is computed. It also samples one token after each sequence, so a sequence must be one token
shorter than the model's longest.
"""

import gc
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pipeline.config import VllmModel
from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.agreement import Disagreement
from pipeline.models.loading import context_of, first_line, load_configuration, load_errors
from pipeline.models.packing import Completion, Group, check_predicted
from pipeline.models.scores import Scores
from pipeline.models.vllm_engine import (
    arguments_of,
    dtype_here,
    environment,
    import_vllm,
    shut_down,
    starting,
    use_threads,
)

_OTHERWISE: Final = "set backend: torch for a model that fits one GPU"
# Sequences in one step, unless the step has room for fewer tokens.
_MOST_SEQUENCES: Final = 256


class VllmLogprobEngine:
    """Scores completions under one causal language model that vLLM holds, as `LogprobEngine` does.

    Args:
        model: the section of the model; engine_args override everything that is set here.
        max_length: most tokens of a sequence.

    Raises a ModelError if vLLM is not installed, or cannot run the model.
    """

    def __init__(self, model: VllmModel, max_length: int) -> None:
        vllm = import_vllm(environment(model.num_threads, model.engine_args), key="backend: vllm", otherwise=_OTHERWISE)
        self._model = model
        context = context_of(load_configuration(model))
        length = max_length + 1  # room for the token that is sampled
        ours = arguments_of(model, model, model.engine_args) | {
            "dtype": dtype_here(model.dtype),
            "max_model_len": length if context is None else min(length, context),
            "max_num_batched_tokens": model.token_budget,
            "max_num_seqs": min(_MOST_SEQUENCES, model.token_budget),
            "enable_chunked_prefill": True,
            "enable_prefix_caching": False,
        }
        remedy = f"Try other engine_args, or {_OTHERWISE}."
        with load_errors("vLLM cannot run", model, remedy), starting(model.num_threads):
            self._engine = vllm.LLM(**(ours | model.engine_args))
        self._limit: int = self._engine.llm_engine.model_config.max_model_len - 1
        self._parameters = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)

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

    def disagreement(self, groups: Sequence[Group]) -> Disagreement | None:
        """None: there is no other forward to compare vLLM with."""
        del groups
        return None

    def close(self) -> None:
        """End the engine and its processes, and free the memory that it has reserved."""
        engine, self._engine = self._engine, None
        if engine is not None:
            shut_down(engine)
        del engine
        gc.collect()

    def _sums(self, completions: Sequence[Completion]) -> list[float]:
        from vllm.v1.engine.exceptions import EngineDeadError

        use_threads(self._model.num_threads)
        prompts = [{"prompt_token_ids": completion.ids.tolist()} for completion in completions]
        try:
            outputs = self._engine.generate(prompts, self._parameters, use_tqdm=False)
        except (RuntimeError, MemoryError, EngineDeadError) as error:
            # vLLM does not survive an error in a step, a full memory included.
            raise ModelError(
                f"vLLM died while it scored with {self._model.model}: {first_line(error)} If memory was full, lower "
                "token_budget or engine_args.gpu_memory_utilization, and run again: finished shards stay."
            ) from error
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
