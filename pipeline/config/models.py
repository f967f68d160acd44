"""The sections of models and of the run: what runs each model, what it reserves, and how the work is laid out."""

import os
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.config.section import BY_CONTENT, LAYOUT, NO_CREDENTIALS, Arguments, Section, Url, carries_credentials
from pipeline.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float16"]

_PARALLEL_SIZES: Final = ("tensor_parallel_size", "pipeline_parallel_size")
_LAYOUT_ARGUMENTS: Final = frozenset(
    {
        *_PARALLEL_SIZES,
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_num_batched_tokens",
        "max_num_seqs",
        "swap_space",
    }
)
"""Arguments of vLLM that lay out the work. Any other argument may change what is computed."""
_NOT_WITH_VLLM: Final = {
    "adapter": "backend vllm scores no adapters; merge it into the model and name that",
    "fp8": "backend vllm has its own: set engine_args: {quantization: fp8}",
    "compile": "backend vllm compiles by itself: leave compile out",
    "deterministic": "backend vllm batches as it likes: use backend torch",
}


def num_shards(engine_args: Mapping[str, Any]) -> int:
    """GPUs that one vLLM engine splits its model among.

    Raises:
        ValueError: a size is no whole number of at least 1.
    """
    sizes = [engine_args.get(name, 1) for name in _PARALLEL_SIZES]
    if not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"{' and '.join(_PARALLEL_SIZES)} must be whole numbers of at least 1")
    return prod(sizes)


def decisive_arguments(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of vLLM that are part of a fingerprint."""
    return {name: value for name, value in engine_args.items() if name not in _LAYOUT_ARGUMENTS}


def _checked_sizes(engine_args: dict[str, Any]) -> dict[str, Any]:
    num_shards(engine_args)
    return engine_args


EngineArguments = Annotated[Arguments, AfterValidator(_checked_sizes)]


_Count = Annotated[int, Field(ge=1)]


class Replicas(Section):
    """What one replica of a model reserves, and how many replicas there are."""

    num_gpus: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default="auto", json_schema_extra=LAYOUT
    )
    """GPUs of one replica. `auto` shares the cluster's GPUs at the start of the run among all replicas, at most one for
    each; without GPUs it is 0."""
    num_cpus: float = Field(default=1.0, gt=0, allow_inf_nan=False, json_schema_extra=LAYOUT)
    """CPU cores that one replica reserves on Ray."""
    num_threads: int = Field(default=1, ge=1, json_schema_extra=LAYOUT)
    """Torch threads of one replica on a CPU."""
    replicas: _Count | tuple[_Count, _Count] = Field(default=1, json_schema_extra=LAYOUT)
    """Copies of the model that work at the same time. With `[2, 8]` a run on Ray begins with 2 and starts up to 8 while
    shards wait for them and the cluster has room, or gets it from its autoscaler."""
    accelerator_type: str | None = Field(default=None, min_length=1, json_schema_extra=LAYOUT)
    """The kind of GPU that each replica must have, as Ray names it: `A100`, `H100`, `L4`."""

    @field_validator("replicas")
    @classmethod
    def _in_order(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"wanted the smaller number first, such as [{value[1]}, {value[0]}]")
        return value

    @property
    def replica_range(self) -> tuple[int, int]:
        """The fewest and the most copies."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas


class TorchModel(Replicas):
    """A causal language model run by alignpot's own scoring engine."""

    backend: Literal["torch"] = "torch"
    """What runs the model: `torch` (alignpot's engine), `vllm`, or `columns` (scores that the source already holds)."""
    model: str = Field(json_schema_extra=BY_CONTENT)
    """Hub id or local directory, with weights in safetensors."""
    revision: str = Field(default="main", json_schema_extra=BY_CONTENT)
    """Branch, tag or commit of a hub model."""
    dtype: Dtype = "bfloat16"
    """Dtype of weights and arithmetic. CPUs without bfloat16 or float16 arithmetic compute in float32, with the weights
    rounded to this dtype."""
    adapter: str | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """LoRA adapter on top of the model: hub id or local directory."""
    adapter_revision: str = Field(default="main", json_schema_extra=BY_CONTENT)
    """Branch, tag or commit of a hub adapter."""
    trust_remote_code: bool = False
    """Run Python code that the model brings along. Only for models that you trust."""
    token_budget: int | None = Field(default=None, ge=1, json_schema_extra=LAYOUT)
    """Most tokens of one forward; a longer row runs alone. Default: 32768 on GPUs, 4096 on CPUs. On GPUs another value
    may move a score by a rounding. In the fingerprint only with `deterministic`."""
    fp8: bool = False
    """Multiply in 8-bit floating point in the decoder's linear layers: up to twice the rate on GPUs of compute
    capability 8.9 or newer. Scores move. A run scores its first 64 rows with and without it, and stops if the rank
    correlation of their margins is below 0.99. Policy and reference need the same value."""
    compile: bool = False
    """Let torch fuse small operations of the decoder's layers: 17 to 19% faster on an H200. A start takes some seconds
    more, and needs a C or C++ compiler. Scores move by a rounding. Policy and reference need the same value."""
    deterministic: bool = False
    """Pad every forward to `token_budget`, so that a row's scores do not depend on the rows beside it, even on GPUs and
    on CPUs with matrix tiles (mixtures of experts excepted). Not measured on either. Slower: each step costs its
    padding, most of all the last one of a shard. Running out of memory is an error. Policy and reference need the same
    value."""

    def fingerprint(self) -> dict[str, Any]:
        """With the token budget if every forward is padded to it."""
        shape = {"token_budget": self.token_budget} if self.deterministic else {}
        return super().fingerprint() | shape


class VllmModel(TorchModel):
    """A causal language model run by vLLM, which can split a model among several GPUs.

    `adapter`, `fp8`, `compile` and `deterministic` are for backend torch only.
    """

    backend: Literal["vllm"]  # type: ignore[assignment]
    """As for torch."""
    token_budget: int = Field(default=2048, ge=1, json_schema_extra=LAYOUT)
    """Most tokens of one step. vLLM holds the float32 logits of all of them at once, beside the memory it reserves."""
    engine_args: EngineArguments = Field(default_factory=dict)
    """Further arguments of vLLM's engine, such as `tensor_parallel_size: 4` with `num_gpus: 4`. In the fingerprint
    except those that lay out the work (parallel sizes, memory, batch sizes, `enforce_eager` and the like)."""

    @field_validator(*_NOT_WITH_VLLM)
    @classmethod
    def _not_with_vllm(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in (None, False):
            raise ValueError(_NOT_WITH_VLLM[str(info.field_name)])
        return value

    @field_validator("engine_args")
    @classmethod
    def _no_keys_of_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(({*cls.model_fields} | {"tokenizer", "tokenizer_revision", "logprobs_mode"}) & {*value})
        if ours:
            raise ValueError(f"{', '.join(ours)} cannot be given here: the keys of the section set the model")
        return value

    @model_validator(mode="after")
    def _a_gpu_for_each_shard(self) -> "VllmModel":
        shards = num_shards(self.engine_args)
        fits = self.num_gpus in (0, shards) or (shards == 1 and (self.num_gpus == "auto" or self.num_gpus < 1))
        if not fits:
            raise ValueError(
                f"num_gpus: {self.num_gpus} does not fit engine_args, which splits the model into {shards}: "
                f"set num_gpus: {shards}, or engine_args.tensor_parallel_size; num_gpus: 0 is for CPUs"
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        """With those arguments of vLLM that are decisive."""
        return super().fingerprint() | {"engine_args": decisive_arguments(self.engine_args)}


class ColumnsModel(Section):
    """Log-probs and token counts that the source already holds, under the names of the scored columns, such as
    `policy_logp_chosen`, `reference_logp_rejected` and `num_tokens_chosen`.
    """

    backend: Literal["columns"]
    """As for torch."""


def by_backend(default: str) -> Discriminator:
    """Tells the sections of a union apart by their key `backend`, which may be left out for `default`."""

    def tag(value: Any) -> str:
        given = value.get("backend", default) if isinstance(value, Mapping) else getattr(value, "backend", default)
        return str(given)

    return Discriminator(tag)


Model = Annotated[
    Annotated[TorchModel, Tag("torch")] | Annotated[VllmModel, Tag("vllm")] | Annotated[ColumnsModel, Tag("columns")],
    by_backend("torch"),
]


class Estimate(Section):
    """What `--dry-run` assumes. Defaults: one H100."""

    model_config = ConfigDict(json_schema_extra=LAYOUT)

    gpu_flops: float = Field(default=9.9e14, gt=0)
    """Dense bfloat16 FLOP/s of one GPU."""
    scoring_mfu: float = Field(default=0.5, gt=0, le=1)
    """Share of those FLOP/s that scoring reaches."""


class Run(Section):
    """How the work is laid out and when a run gives up."""

    model_config = ConfigDict(json_schema_extra=LAYOUT)

    engine: Literal["auto", "ray", "plain"] = "auto"
    """`ray` works in Ray actors; `plain` is a loop in this process, without Ray. Both give equal results. `auto` is
    `ray`, but `plain` where no model runs and there is no cluster to join."""
    address: str | None = None
    """Ray cluster to join. Default: that of RAY_ADDRESS, otherwise a local one."""
    placement: Literal["auto", "pooled", "colocated", "in_turn"] = "auto"
    """`pooled` gives each model its own actors; `colocated` holds all models in every actor. There, and in the plain
    loop, a policy with a LoRA adapter and the reference that is its base hold their weights once; scores are the same.
    Not with `fp8` or `compile`, nor with an adapter that brings whole modules. With `in_turn` one model is in memory
    at a time: it is loaded, works on a batch of shards, and makes room for the next one. `auto` is
    `pooled` if there is a GPU for each replica, or none at all. If GPUs are short, it compares the bytes of the models
    with the free memory and takes the first that fits of pooled, colocated and in_turn. It is `pooled` too if a model
    has `num_gpus` or `accelerator_type` of its own, or is one of vLLM."""
    turn_shards: int = Field(default=16, ge=1)
    """With `in_turn`: most shards of one batch, after which the next model is loaded; fewer if they take more than 256
    MiB. A run that is killed loses at most the batch that it was at."""
    shard_rows: int | None = Field(default=None, ge=1)
    """Rows of one shard. A shard is the unit of work: it is scored and stored as a whole. Default: 256, or 8192 where
    no model runs. On GPUs another value may move a score by a rounding."""
    group_prompts: bool = False
    """Bring the rows of a prompt into one shard, where the source has them apart: models then compute the prompt once
    for all of them. The pairs are first written to `pairs/` below the scored path. The scored dataset and its subsets
    have their rows in another order; ids, scores and what is selected are the same. `--dry-run` counts tokens without
    it. For `run` and `score`; it decides when a run begins."""
    stage_timeout_s: float = Field(default=3600.0, gt=0, le=1e6)
    """Seconds that a stage may work on one shard. A process that takes longer counts as hung and is ended."""
    max_dropped: float = Field(default=0.1, ge=0, le=1)
    """Largest share of rows that may be dropped. Above it, the run ends with exit code 3. Rows that the config
    leaves out, by `source.where` and the like, do not count."""
    cache: Url | None = None
    """Folder or URL where the answers of reward services are kept. A rerun, or a run on other rows, asks and pays only
    for what is missing. One folder may serve any number of runs and models. Default: nothing is kept."""
    track: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Function that gets config, counts, figures and report once at the end, as `module:function`. jobs/TRACKING.md has
    examples. An error in it is told and fails no run."""

    def on_ray(self, *, runs_models: bool) -> bool:
        """Whether Ray does the work. Raises as `cluster`."""
        return self.engine == "ray" or (self.engine == "auto" and (runs_models or self.cluster is not None))

    @property
    def cluster(self) -> str | None:
        """The cluster to join: `address`, else RAY_ADDRESS; None for a Ray of our own.

        Raises a ConfigError if RAY_ADDRESS carries credentials.
        """
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address is not None and carries_credentials(address):
            raise ConfigError(f"RAY_ADDRESS {NO_CREDENTIALS}; a token goes into RAY_AUTH_TOKEN.")
        return None if address in (None, "", "local") else address
