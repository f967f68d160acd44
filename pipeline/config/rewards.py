"""The sections of rewards: where the reward of a prompt with an answer comes from."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, Tag, field_validator, model_validator

from pipeline.config.jinja import JinjaFile
from pipeline.config.models import Replicas, TorchModel, VllmModel, by_backend
from pipeline.config.section import BY_CONTENT, LAYOUT, Arguments, Section, given_only
from pipeline.config.services import EndpointReward, JudgeReward, Judging, VllmJudgeReward

V = TypeVar("V")

RewardName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
"""Names a reward in the names of its columns."""


class ColumnsReward(Section):
    """Rewards that the source already holds: `reward` under any of the common names, a member NAME of `rewards` as
    `reward_NAME_chosen` and `reward_NAME_rejected`. `source.columns` gives columns these names.
    """

    backend: Literal["columns"] = "columns"
    """Where rewards come from: `columns` of the source, a `classifier`, the same run by `vllm`, an `endpoint` that
    serves one, a `judge`, a judge by `vllm_judge`, or a `function` of yours."""


class ClassifierReward(TorchModel):
    """A reward model: a sequence classifier with one logit, or a model that returns `.score`; with `heads` also one of
    several logits.
    """

    backend: Literal["classifier"]  # type: ignore[assignment]
    """As for columns."""
    max_length: int = Field(default=4096, ge=2)
    """Most tokens of prompt and response together. The tokenizer's `truncation_side` says which end is cut."""
    chat_template: JinjaFile | None = None
    """Jinja file to use instead of the template of the reward model's tokenizer, as `tokens.chat_template`."""
    heads: tuple[RewardName, ...] | None = Field(default=None, min_length=1)
    """Names of what a model with several logits gives, in its order, such as `[helpfulness, correctness]`. Each is a
    reward of its own, from one forward: `helpfulness` of `reward`, `NAME_helpfulness` of a member NAME of `rewards`.
    Of a model that returns `.rewards`, these are taken."""

    def fingerprint(self) -> dict[str, Any]:
        """Without a template or heads that are not given."""
        return given_only(super().fingerprint(), chat_template=self.chat_template, heads=self.heads)


class VllmReward(VllmModel):
    """A reward model with one logit, run by vLLM, which can split it among several GPUs."""

    backend: Literal["vllm"]
    """As for columns."""
    max_length: int = Field(default=4096, ge=2)
    """As for a classifier."""
    chat_template: JinjaFile | None = None
    """As for a classifier."""

    def fingerprint(self) -> dict[str, Any]:
        """Without a template that is not given."""
        return given_only(super().fingerprint(), chat_template=self.chat_template)


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
        return given_only(super().fingerprint(), version=self.version)


Reward = Annotated[
    Annotated[ColumnsReward, Tag("columns")]
    | Annotated[ClassifierReward, Tag("classifier")]
    | Annotated[VllmReward, Tag("vllm")]
    | Annotated[EndpointReward, Tag("endpoint")]
    | Annotated[JudgeReward, Tag("judge")]
    | Annotated[VllmJudgeReward, Tag("vllm_judge")]
    | Annotated[FunctionReward, Tag("function")],
    by_backend("columns"),
]
ComputedReward = Annotated[
    Annotated[ClassifierReward, Tag("classifier")]
    | Annotated[VllmReward, Tag("vllm")]
    | Annotated[EndpointReward, Tag("endpoint")]
    | Annotated[JudgeReward, Tag("judge")]
    | Annotated[VllmJudgeReward, Tag("vllm_judge")]
    | Annotated[FunctionReward, Tag("function")],
    by_backend("classifier"),
]
"""A reward that can judge new answers."""


def _by_name(value: dict[str, V]) -> dict[str, V]:
    return dict(sorted(value.items()))


Rewards = Annotated[dict[RewardName, Reward], Field(min_length=1), AfterValidator(_by_name)]
ComputedRewards = Annotated[dict[RewardName, ComputedReward], Field(min_length=1), AfterValidator(_by_name)]
"""Several rewards by name, in the order of the names: that of their columns."""


def reward_key(name: str) -> str:
    """The key of the section of a member."""
    return f"rewards.{name}" if name else "reward"


def names_of(name: str, section: Section) -> tuple[str, ...]:
    """Names of the rewards that a member gives: its own, or one for each of its heads."""
    heads = getattr(section, "heads", None)
    return (name,) if heads is None else tuple("_".join(filter(None, (name, head))) for head in heads)


class HasRewards(Section):
    """A config with the key `reward` or `rewards`. One reward is the list of one member without a name."""

    if TYPE_CHECKING:
        reward: Any
        rewards: Any

    @property
    def members(self) -> Mapping[str, Any]:
        """The sections of all rewards, by name."""
        return self.rewards or ({} if self.reward is None else {"": self.reward})

    @property
    def reward_names(self) -> tuple[str, ...]:
        """Names of all rewards, in the order of their columns; without any, that of the one whose columns are null."""
        names = [name for member, section in self.members.items() for name in names_of(member, section)]
        return tuple(names) or ("",)

    def torch_models(self) -> dict[str, TorchModel]:
        """The models that alignpot runs itself, by the key of their section: policy, reference, then rewards."""
        roles = {role: getattr(self, role, None) for role in ("policy", "reference")}
        roles |= {reward_key(name): section for name, section in self.members.items()}
        return {role: model for role, model in roles.items() if isinstance(model, TorchModel)}

    def check_each_is_rated(self) -> None:
        """Raise a ValueError if a member compares pairs, and so gives no reward of a single response."""
        if any(isinstance(section, Judging) and section.style == "pairwise" for section in self.members.values()):
            raise ValueError("a pairwise judge gives no reward of a single response: set style: pointwise")

    def with_members(self, sections: Mapping[str, Section]) -> Self:
        """The same with other sections for these members."""
        members = {**self.members, **sections}
        return self.model_copy(update={"rewards": members} if self.rewards else {"reward": members.get("")})

    @model_validator(mode="after")
    def _rewards_have_one_name_each(self) -> Self:
        if self.reward is not None and self.rewards:
            raise ValueError("takes reward or rewards, not both")
        twice = [name for name, count in Counter(self.reward_names).items() if count > 1]
        if twice:
            raise ValueError(f"rewards gives {twice[0]} twice, as a name or a name with its head: rename one of them")
        return self
