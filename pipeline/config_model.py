"""The sections of models: what runs each of them, and what one replica of it reserves."""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pipeline.config_section import Section, without_secrets

Dtype = Literal["float32", "bfloat16", "float16"]

_PARALLEL_SIZES: Final = ("tensor_parallel_size", "pipeline_parallel_size")


class Replicas(Section):
    """What one replica of a model reserves, and how many there are."""

    num_gpus: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = "auto"
    """GPUs one replica reserves; auto shares the GPUs that the cluster has when the run starts among all replicas, at
    most one each, and is 0 where it has none."""
    num_cpus: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    num_threads: int = Field(default=1, ge=1)
    """Torch threads of one replica on CPU."""
    replicas: int = Field(default=1, ge=1)


class TorchModel(Replicas):
    """A causal language model run by alignpot's own scoring engine."""

    backend: Literal["torch"] = "torch"
    model: str
    """Hub id or local directory."""
    revision: str = "main"
    dtype: Dtype = "bfloat16"
    adapter: str | None = None
    """Directory or hub id of a LoRA adapter on top of the model."""
    adapter_revision: str = "main"
    trust_remote_code: bool = False
    token_budget: int | None = Field(default=None, ge=1)
    """Most tokens in one forward; a single longer row runs alone. Not given: 32768 on GPUs, 4096 on CPUs."""
    fp8: bool = False
    """Multiply in 8-bit floating point in the decoder's linear layers, at up to twice the rate on GPUs of compute
    capability 8.9 and newer. Scores move; the run stops if the first rows do not rank as without it."""
    compile: bool = False
    """Have torch fuse the small operations of the decoder's layers: 17 to 19% faster on an H200, after the seconds that
    a start takes to compile them. Scores move by a rounding. Needs a C or C++ compiler."""
    deterministic: bool = False
    """Pad every forward to `token_budget` tokens. GPUs, and CPUs with tiles, then compute a row the same way whatever
    is scored with it (mixtures of experts excepted). Slower; a full memory is then an error."""


class VllmModel(TorchModel):
    """A causal language model run by vLLM, which may share one model among several GPUs."""

    backend: Literal["vllm"]  # type: ignore[assignment]
    token_budget: int = Field(default=2048, ge=1)
    """Most tokens in one step: vLLM holds the float32 logits of all of them at once, beside the memory it reserves."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, such as tensor_parallel_size."""

    @field_validator("adapter")
    @classmethod
    def _no_adapter(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("backend vllm scores no adapters; merge it into the model and name that")
        return value

    @field_validator("fp8")
    @classmethod
    def _no_fp8(cls, value: bool) -> bool:  # noqa: FBT001
        if value:
            raise ValueError("backend vllm has its own: set engine_args: {quantization: fp8}")
        return value

    @field_validator("compile")
    @classmethod
    def _no_compile(cls, value: bool) -> bool:  # noqa: FBT001
        if value:
            raise ValueError("backend vllm compiles by itself: leave compile out")
        return value

    @field_validator("deterministic")
    @classmethod
    def _no_deterministic(cls, value: bool) -> bool:  # noqa: FBT001
        if value:
            raise ValueError("backend vllm batches as it likes: use backend torch")
        return value

    _engine_args = field_validator("engine_args")(without_secrets)

    @field_validator("engine_args")
    @classmethod
    def _no_keys_of_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(({*cls.model_fields} | {"tokenizer", "tokenizer_revision", "logprobs_mode"}) & {*value})
        if ours:
            raise ValueError(f"{', '.join(ours)} cannot be given here: the keys of the section say which model it is")
        return value

    @model_validator(mode="after")
    def _a_gpu_for_each_shard(self) -> "VllmModel":
        sizes = {name: self.engine_args.get(name, 1) for name in _PARALLEL_SIZES}
        if not all(isinstance(size, int) and size >= 1 for size in sizes.values()):
            raise ValueError(f"engine_args: {' and '.join(_PARALLEL_SIZES)} are whole numbers of at least 1")
        num_shards = prod(sizes.values())
        fits = self.num_gpus in (0, num_shards) or (num_shards == 1 and (self.num_gpus == "auto" or self.num_gpus < 1))
        if not fits:
            raise ValueError(
                f"num_gpus: {self.num_gpus} does not fit engine_args, which splits the model into {num_shards}: "
                f"set num_gpus: {num_shards}, or engine_args.tensor_parallel_size; num_gpus: 0 is for CPUs"
            )
        return self


class ColumnsModel(Section):
    """Log-probabilities and token counts that the source already holds, under the scored column names."""

    backend: Literal["columns"]


class ColumnsReward(Section):
    """Scores that the source already holds."""

    backend: Literal["columns"] = "columns"


class ClassifierReward(TorchModel):
    """A reward model: a sequence classifier with one logit, or a model that returns `.score`."""

    backend: Literal["classifier"]  # type: ignore[assignment]
    max_length: int = Field(default=4096, ge=2)


def _backend(default: str) -> Discriminator:
    def tag(value: Any) -> str:
        if isinstance(value, Mapping):
            return str(value.get("backend", default))
        return str(getattr(value, "backend", default))

    return Discriminator(tag)


Model = Annotated[
    Annotated[TorchModel, Tag("torch")] | Annotated[VllmModel, Tag("vllm")] | Annotated[ColumnsModel, Tag("columns")],
    _backend("torch"),
]
Reward = Annotated[
    Annotated[ColumnsReward, Tag("columns")] | Annotated[ClassifierReward, Tag("classifier")], _backend("columns")
]
