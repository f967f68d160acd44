"""The sections of rewards that come from an HTTP service."""

import re
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.jinja import JinjaFile
from pipeline.config.models import Replicas, VllmModel
from pipeline.config.section import BY_CONTENT, LAYOUT, Arguments, given_only

_URL: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
_OWN_PARAMETERS: Final = frozenset({"model", "messages", "n", "stream", "seed", "logprobs"})

PairwisePrompt = Literal["default", "mt-bench", "rm-r1", "prometheus", "nemotron-genrm"]
PointwisePrompt = Literal["default", "prometheus", "rewardbench"]


def _service_url(url: str) -> str:
    if not _URL.fullmatch(url):
        raise ValueError(
            "wanted http://host:port or https://host, with a path or without, such as http://10.0.0.4:8000"
        )
    return url


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            "wanted the name of an environment variable, such as REWARD_KEY; the config must not carry credentials"
        )
    return name


ServiceUrl = Annotated[str, AfterValidator(_service_url)]
"""Base URL of an HTTP service."""


class ServiceReward(Replicas):
    """Keys of rewards that come from an HTTP service: where it is, and how patiently it is asked."""

    urls: tuple[ServiceUrl, ...] = Field(min_length=1, json_schema_extra=LAYOUT)
    """Base URLs of servers of the same model, such as `[http://10.0.0.4:8000, http://10.0.0.5:8000]`. Each request goes
    to the one with the fewest in flight. One that fails is left alone for a while."""
    key_variable: Annotated[str, AfterValidator(_variable)] | None = Field(default=None, json_schema_extra=LAYOUT)
    """Environment variable that holds the key of the service, such as `REWARD_KEY`. Needed on every node that scores.
    The key is sent as `Authorization: Bearer KEY`, and written nowhere."""
    concurrency: int = Field(default=64, ge=1, json_schema_extra=LAYOUT)
    """Most requests that one replica has in flight."""
    timeout_s: float = Field(default=600.0, gt=0, le=1e6, json_schema_extra=LAYOUT)
    """Seconds that one request may take before it is sent again. It waits at the server for all that are in flight
    with it: lower `concurrency` for a slow one."""
    deadline_s: float = Field(default=1800.0, gt=0, le=1e6, json_schema_extra=LAYOUT)
    """Seconds that the requests of one shard may take, with all pauses and tries. Then the run ends with exit code 75,
    and the same command goes on. Keep it below `run.stage_timeout_s`."""
    version: str | None = None
    """Change it when the service gets other weights under the same name. Part of the fingerprint and of the keys of
    `run.cache`."""
    num_gpus: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, json_schema_extra=LAYOUT
    )
    """GPUs of one replica. The service has its own."""

    def fingerprint(self) -> dict[str, Any]:
        """Without a version that is not given."""
        return given_only(super().fingerprint(), version=self.version)


class EndpointReward(ServiceReward):
    """A reward model behind a server: see [REWARDS.md](REWARDS.md). Dialogues are rendered and tokenised here. vLLM and
    SGLang get token ids, the others text.
    """

    backend: Literal["endpoint"]
    """As for columns."""
    kind: Literal["vllm", "sglang", "openrlhf", "tei"]
    """What serves it: `vllm` (`/classify`), `sglang` (`/classify`), `openrlhf` (`/get_reward`) or `tei` (`/predict` of
    text-embeddings-inference)."""
    model: str = Field(json_schema_extra=BY_CONTENT)
    """The model that is served: hub id or local directory. Only its tokenizer is read here."""
    revision: str = Field(default="main", json_schema_extra=BY_CONTENT)
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that the tokenizer brings along. Only for models that you trust."""
    served_name: str | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """Name that requests give the model: vLLM's `--served-model-name`. Default: `model`."""
    max_length: int = Field(default=4096, ge=2)
    """As for a classifier. The server must allow as many."""
    chat_template: JinjaFile | None = None
    """As for a classifier."""
    bounded: bool = False
    """Whether the model's own rewards lie between 0 and 1, as those of ArmoRM do. Otherwise first rewards that all lie
    there end the run: the server has put a sigmoid on them, which makes large margins small."""
    probe: tuple[float, ...] | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """Rewards of some texts of alignpot's own. A run asks for them at each start and compares: none may move by more
    than 0.02, or 2% above 1. Give them to refuse any other model."""
    batch_rows: int = Field(default=8, ge=1, json_schema_extra=LAYOUT)
    """Dialogues of one request."""

    def fingerprint(self) -> dict[str, Any]:
        """Without what is not given."""
        return given_only(super().fingerprint(), chat_template=self.chat_template, bounded=self.bounded or None)


class Judging(Replicas):
    """Keys of a chat model as judge: what it is asked, and how its verdicts are read."""

    style: Literal["pairwise", "pointwise"] = "pairwise"
    """`pairwise` compares the answers of a pair, in both orders. It gives a margin from -1 to 1, and no rewards of each
    side. `pointwise` rates each answer by itself."""
    prompt: PairwisePrompt | PointwisePrompt = "default"
    """Whose format request and verdict have: alignpot's own (`default`), `mt-bench`, `rm-r1`, `prometheus` or
    `nemotron-genrm` if pairwise; `default`, `prometheus` or `rewardbench` if pointwise."""
    template: JinjaFile | None = None
    """Jinja file of your own in place of the text of the prompt. The verdict must keep its format."""
    rubric: str | None = None
    """What makes an answer good, in your words. Default: a general rubric."""
    verdict: Literal["logprobs", "votes"] = "logprobs"
    """`logprobs` reads how likely each verdict is, so that margins are continuous; the server must give
    log-probabilities. `votes` counts verdicts."""
    votes: int = Field(default=1, ge=1, le=64)
    """Verdicts for each request; above 1 only with `verdict: votes`. They need a temperature."""
    parameters: Arguments = Field(default_factory=dict)
    """Further keys of each request, such as `{temperature: 0.6, max_tokens: 4096}`. They replace those of the prompt;
    null leaves one out."""

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        known = get_args(PairwisePrompt if self.style == "pairwise" else PointwisePrompt)
        if self.prompt not in known:
            raise ValueError(f"prompt {self.prompt} is not for style {self.style}; wanted one of {', '.join(known)}")
        if self.verdict == "logprobs" and self.prompt == "rewardbench":
            raise ValueError("verdict: logprobs is not for prompt rewardbench, whose 10 is two tokens: use votes")
        if self.verdict == "logprobs" and self.votes > 1:
            raise ValueError("votes are counted only with verdict: votes")
        if self.rubric is not None and self.prompt == "nemotron-genrm" and self.template is None:
            raise ValueError("rubric is not for prompt nemotron-genrm, which has no place for it: leave it out")
        taken = sorted({*self.parameters} & _OWN_PARAMETERS)
        if taken:
            raise ValueError(f"parameters must not name {', '.join(taken)}, which alignpot sets itself")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Without what is not given."""
        return given_only(super().fingerprint(), template=self.template, rubric=self.rubric)


class JudgeReward(Judging, ServiceReward):
    """A chat model as judge, behind a server with OpenAI's chat completions: see [REWARDS.md](REWARDS.md)."""

    backend: Literal["judge"]
    """As for columns."""
    model: str
    """Name that requests give the model."""


class VllmJudgeReward(Judging, VllmModel):
    """A chat model as judge, run by vLLM in the process that scores, without a server."""

    backend: Literal["vllm_judge"]  # type: ignore[assignment]
    """As for columns."""
    max_length: int = Field(default=16384, ge=2)
    """Most tokens of a request and its answer together. A row whose request leaves no room is dropped."""
