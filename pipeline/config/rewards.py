"""The sections of rewards: where the reward of a prompt with an answer comes from."""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, field_validator

from pipeline.config.jinja import JinjaFile
from pipeline.config.models import Replicas, TorchModel, by_backend
from pipeline.config.section import BY_CONTENT, LAYOUT, Arguments, Section


class ColumnsReward(Section):
    """Rewards that the source already holds, under any of the common names."""

    backend: Literal["columns"] = "columns"
    """Where rewards come from: `columns` of the source, a `classifier`, or a `function` of yours."""


class ClassifierReward(TorchModel):
    """A reward model: a sequence classifier with one logit, or a model that returns `.score`."""

    backend: Literal["classifier"]  # type: ignore[assignment]
    """As for columns."""
    max_length: int = Field(default=4096, ge=2)
    """Most tokens of prompt and response together. The tokenizer's `truncation_side` says which end is cut."""
    chat_template: JinjaFile | None = None
    """Jinja file to use instead of the template of the reward model's tokenizer, as `tokens.chat_template`."""

    def fingerprint(self) -> dict[str, Any]:
        """Without a template that is not given."""
        found = super().fingerprint()
        return found if self.chat_template is not None else {k: v for k, v in found.items() if k != "chat_template"}


class FunctionReward(Replicas):
    """A function of yours, such as a check of the answer: see [REWARDS.md](REWARDS.md). It must be importable on every
    node, and the reward of a row must not depend on the rows beside it.
    """

    backend: Literal["function"]
    """As for columns."""
    function: str
    """`package.module:name`. It gets a list of rows as dicts, and returns a list with a number for each. None drops the
    row."""
    arguments: Arguments = Field(default_factory=dict)
    """Keyword arguments of each call."""
    version: str | None = None
    """Change it when something else changes that moves rewards, such as another module or a service. The fingerprint
    holds the digest of the function's own module."""
    digest: str | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """Digest of the file of the function's module. A run sets it, so that every node calls the same function; give one
    to refuse any other."""
    batch_rows: int = Field(default=64, ge=1, json_schema_extra=LAYOUT)
    """Most rows of one call."""
    timeout_s: float = Field(default=60.0, gt=0, le=1e6, json_schema_extra=LAYOUT)
    """Seconds that one call may take. The rows of a call that fails or takes longer are tried one by one, and a row
    that fails alone is dropped."""
    isolate: bool = Field(default=True, json_schema_extra=LAYOUT)
    """Call it in a process of its own, which is ended if it hangs, and started again. With `false`, a function that
    hangs in C code or ends its process takes the worker along."""
    num_gpus: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, json_schema_extra=LAYOUT
    )
    """GPUs of one replica."""
    num_threads: int = Field(default=1, ge=1, json_schema_extra=LAYOUT)
    """OMP_NUM_THREADS of the process of its own."""

    @field_validator("function")
    @classmethod
    def _a_name_in_a_module(cls, value: str) -> str:
        module, _, name = value.partition(":")
        if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise ValueError("wanted package.module:name")
        return value

    def fingerprint(self) -> dict[str, Any]:
        """Without a version that is not given."""
        found = super().fingerprint()
        return found if self.version is not None else {k: v for k, v in found.items() if k != "version"}


Reward = Annotated[
    Annotated[ColumnsReward, Tag("columns")]
    | Annotated[ClassifierReward, Tag("classifier")]
    | Annotated[FunctionReward, Tag("function")],
    by_backend("columns"),
]
ComputedReward = Annotated[
    Annotated[ClassifierReward, Tag("classifier")] | Annotated[FunctionReward, Tag("function")],
    by_backend("classifier"),
]
"""A reward that can judge new answers."""
