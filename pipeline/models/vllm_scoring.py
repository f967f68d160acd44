"""A vLLM engine that scores: start, arguments, death and end, the same for log-probabilities and rewards.

One `vllm.LLM` in one actor owns the processes of its tensor-parallel group, so a model on eight GPUs is one replica
like any other. (Transformers' `tp_plan` wants a process for each rank, and its sharded modules cannot run packed
steps.)
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, TypeVar

from pipeline.config import VllmModel
from pipeline.errors import ModelError
from pipeline.models.agreement import Disagreement
from pipeline.models.loading import context_of, first_line, load_configuration, load_errors
from pipeline.models.packing import Completion, Group
from pipeline.models.vllm_engine import (
    arguments_of,
    dtype_here,
    environment,
    import_vllm,
    shut_down,
    starting,
    use_threads,
)

T = TypeVar("T")

# Sequences in one step, unless the step has room for fewer tokens.
_MOST_SEQUENCES: Final = 256


class VllmScoringEngine:
    """Holds a model in vLLM.

    Args:
        model: the section of the model; engine_args override everything that is set here.
        max_length: most tokens of a sequence, those included that vLLM adds.
        arguments: further ones of `vllm.LLM`.

    Raises a ModelError if vLLM is not installed, or cannot run the model.
    """

    otherwise: ClassVar[str]
    """A way without vLLM."""

    def __init__(self, model: VllmModel, max_length: int, **arguments: Any) -> None:
        wanted = environment(model.num_threads, model.engine_args)
        self._vllm = import_vllm(wanted, key="backend: vllm", otherwise=self.otherwise)
        self._model = model
        context = context_of(load_configuration(model))
        ours = arguments_of(model, model, model.engine_args) | {
            "dtype": dtype_here(model.dtype),
            "max_model_len": max_length if context is None else min(max_length, context),
            "max_num_batched_tokens": model.token_budget,
            "max_num_seqs": min(_MOST_SEQUENCES, model.token_budget),
            "enable_chunked_prefill": True,
            "enable_prefix_caching": False,
        }
        remedy = f"Try other engine_args, or {self.otherwise}."
        with load_errors("vLLM cannot run", model, remedy), starting(model.num_threads):
            self._engine = self._vllm.LLM(**(ours | arguments | model.engine_args))
        self._max_length: int = self._engine.llm_engine.model_config.max_model_len

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

    def _outputs(self, call: Callable[[Any, list[dict[str, Any]]], T], completions: Sequence[Completion]) -> T:
        """What `call` gives for the engine and the prompts of these completions. Raises a ModelError if it died."""
        from vllm.v1.engine.exceptions import EngineDeadError

        use_threads(self._model.num_threads)
        prompts = [{"prompt_token_ids": completion.ids.tolist()} for completion in completions]
        try:
            return call(self._engine, prompts)
        except (RuntimeError, MemoryError, EngineDeadError) as error:
            # vLLM does not survive an error in a step, a full memory included.
            raise ModelError(
                f"vLLM died while it scored with {self._model.model}: {first_line(error)} If memory was full, lower "
                "token_budget or engine_args.gpu_memory_utilization, and run again: finished shards stay."
            ) from error
