"""How the work is laid out: the run section, and what one replica of a model reserves. Nothing here moves a number."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from pipeline.config.section import LAYOUT, Section


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
    replicas: int = Field(default=1, ge=1, json_schema_extra=LAYOUT)
    """Copies of the model that work at the same time."""


class Run(Section):
    """How the work is laid out and when a run gives up."""

    model_config = ConfigDict(json_schema_extra=LAYOUT)

    engine: Literal["ray", "plain"] = "ray"
    """`ray` works in Ray actors; `plain` is a loop in this process, without Ray. Both give equal results."""
    address: str | None = None
    """Ray cluster to join. Default: that of RAY_ADDRESS, otherwise a local one."""
    placement: Literal["pooled", "colocated"] = "pooled"
    """`pooled` gives each model its own actors; `colocated` holds all models in every actor."""
    shard_rows: int | None = Field(default=None, ge=1)
    """Rows of one shard. A shard is the unit of work: it is scored and stored as a whole. Default: 256, or 8192 where
    no model runs. On GPUs another value may move a score by a rounding."""
    stage_timeout_s: float = Field(default=3600.0, gt=0, le=1e6)
    """Seconds that a stage may work on one shard. A process that takes longer counts as hung and is ended."""
    max_dropped: float = Field(default=0.1, ge=0, le=1)
    """Largest share of rows that may be dropped. Above it, the run ends with exit code 3."""
