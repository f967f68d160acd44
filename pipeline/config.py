"""One YAML file, typed and strict: the whole of what a user decides.

`config_file.load_config` reads it into a frozen `Config`. Rules across sections are checked here, before anything is
read or loaded. Each class default is the vetted setting. Imports only pydantic and yaml.
"""

import datetime
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config_metric import Metric as Metric  # noqa: PLC0414
from pipeline.config_model import ClassifierReward as ClassifierReward  # noqa: PLC0414
from pipeline.config_model import ColumnsModel as ColumnsModel  # noqa: PLC0414
from pipeline.config_model import ColumnsReward as ColumnsReward  # noqa: PLC0414
from pipeline.config_model import Dtype as Dtype  # noqa: PLC0414
from pipeline.config_model import Model as Model  # noqa: PLC0414
from pipeline.config_model import Replicas as Replicas  # noqa: PLC0414
from pipeline.config_model import Reward as Reward  # noqa: PLC0414
from pipeline.config_model import TorchModel as TorchModel  # noqa: PLC0414
from pipeline.config_model import VllmModel as VllmModel  # noqa: PLC0414
from pipeline.config_objective import OBJECTIVES_WITH_REFERENCE
from pipeline.config_objective import Objective as Objective  # noqa: PLC0414
from pipeline.config_preset import PresetName, with_preset
from pipeline.config_section import Section as Section  # noqa: PLC0414
from pipeline.config_section import checked_url
from pipeline.config_select import Select as Select  # noqa: PLC0414
from pipeline.config_sweep import Variant
from pipeline.config_text import read_text

DEFAULT_DATE: Final = datetime.date(2025, 1, 1)
_TEMPLATE_BYTES: Final = 1 << 20


def _normalised(url: str) -> str:
    return url.rstrip("/") if "://" in url else str(Path(url).expanduser().resolve())


class Source(Section):
    """Where the preference pairs are and how to read them."""

    path: str
    format: str = "auto"
    id_column: str | None = None
    """Column that holds a unique id; left out, the id is a hash of the content."""
    pairs: Literal["best-worst", "sweet-spot"] = "best-worst"
    """How a pair is picked from candidates: sweet-spot rejects the one nearest to two deviations below their mean."""
    passthrough: tuple[str, ...] = ()
    """Source columns to carry along unchanged."""

    _path = field_validator("path")(checked_url)


class Storage(Section):
    """How to reach S3; credentials come from the usual AWS variables, files and roles, never from here."""

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    max_attempts: int = Field(default=10, ge=1)

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError("must not carry credentials; use the AWS variables or an instance role")
        return value


class Tokens(Section):
    """Templating and truncation, the same for policy and reference."""

    preset: Literal["trl", "paper"] = "trl"
    max_length: int = Field(default=2048, ge=2)
    """Most tokens of prompt and response together."""
    max_prompt_length: int = Field(default=1800, ge=1)
    """Used by the paper preset only."""
    truncation: Literal["keep_start", "keep_end"] = "keep_start"
    """Which end of a pair that is too long is kept; the paper preset has its own rule and ignores it."""
    chat_template: str | None = None
    """Jinja file to use instead of the tokenizer's own template; read here, so that workers need no such file. At most
    1 MiB."""

    date: datetime.date = DEFAULT_DATE
    """The day that templates which print today's date are told, reward model's included: scores must not depend on
    the day of the run."""

    @field_validator("chat_template")
    @classmethod
    def _template_text(cls, value: str | None) -> str | None:
        if value is None or "{" in value:
            return value
        try:
            return read_text(value, most_bytes=_TEMPLATE_BYTES)
        except OSError as error:
            raise ValueError(f"the file cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"the file cannot be used: {error}") from None

    @model_validator(mode="after")
    def _paper_lengths(self) -> "Tokens":
        if self.preset == "paper" and self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length with preset: paper")
        return self


class Output(Section):
    """Where the subset goes and in which layouts."""

    path: str
    formats: tuple[Literal["hf", "parquet"], ...] = Field(default=("hf", "parquet"), min_length=1)
    slim: bool = False
    """Keep prompt, chosen and rejected only."""
    rows_per_file: int = Field(default=100_000, ge=1)

    _path = field_validator("path")(checked_url)

    @field_validator("formats")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a format twice")
        return value


class Run(Section):
    """How the work is laid out. Nothing here can move a number."""

    engine: Literal["ray", "plain"] = "ray"
    address: str | None = None
    """Ray cluster to join; left out, RAY_ADDRESS or else a local one."""
    placement: Literal["pooled", "colocated"] = "pooled"
    """Each model in its own pool of actors, or all of them in every actor."""
    shard_rows: int | None = Field(default=None, ge=1)
    """Rows in a shard, the unit of work and of commit. Left out: 256, or 8,192 where no model runs."""
    stage_timeout_s: float = Field(default=3600.0, gt=0, le=1e6)
    """Longest that a stage may be busy with one shard: a process that is longer has hung, and is ended."""
    max_dropped: float = Field(default=0.1, ge=0, le=1)
    """Largest share of rows that may be dropped before the run ends with exit code 3."""


class Config(Section):
    """The whole file. `score` needs source, scored and what the metric reads; `select` needs scored and output."""

    preset: PresetName | None = None
    """Defaults of tokens, objective, metric and select as the paper's authors have them."""
    source: Source | None = None
    storage: Storage = Storage()
    policy: Model | None = None
    reference: Model | None = None
    reward: Reward | None = None
    tokens: Tokens = Tokens()
    scored: str
    objective: Objective = Objective()
    metric: Metric = Metric()
    select: Select | None = None
    sweep: tuple[Variant, ...] = ()
    """Several selections at once; left out, there is one, as objective, metric and select say."""
    output: Output | None = None
    run: Run = Run()

    _scored = field_validator("scored")(checked_url)

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, data: Any) -> Any:
        return with_preset(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _metric_has_its_models(self) -> "Config":
        name = self.metric.name
        if name == "difficulty" and self.objective.name != "dpo":
            raise ValueError("metric difficulty is the smallest gap of DPO's implicit rewards: set objective.name: dpo")
        if self.source is None:
            return self
        if self.metric.reads_implicit:
            if self.policy is None:
                raise ValueError(f"metric {name} reads the implicit margin: add a policy section")
            if self.objective.name in OBJECTIVES_WITH_REFERENCE and self.reference is None:
                raise ValueError(
                    f"objective {self.objective.name} needs reference log-probs: add a reference section, "
                    "or choose an objective without one, such as simpo"
                )
        if self.metric.reads_explicit and self.reward is None:
            raise ValueError(f"metric {name} reads the explicit margin: add a reward section")
        return self

    @model_validator(mode="after")
    def _rounded_alike(self) -> "Config":
        both = [model for model in (self.policy, self.reference) if isinstance(model, TorchModel)]
        for name in ("fp8", "compile", "deterministic"):
            if len({getattr(model, name) for model in both}) > 1:
                raise ValueError(
                    f"{name} of one of policy and reference alone would stay in their difference: give it to both, "
                    "or to none"
                )
        return self

    @model_validator(mode="after")
    def _margins_have_their_columns(self) -> "Config":
        if isinstance(self.policy, ColumnsModel) and isinstance(self.reference, TorchModel):
            raise ValueError(
                "policy.backend columns brings token counts of its own, which those of a torch reference would "
                "replace: use columns for both, or torch for both"
            )
        if self.metric.reads_candidates and isinstance(self.reward, ClassifierReward):
            raise ValueError(
                "metric.explicit candidates reads the rewards of all candidates, which reward.backend classifier does "
                "not give: use reward.backend columns, or metric.explicit signed"
            )
        labels = "keep" if self.select is None else self.select.labels
        if labels != "keep" and self.metric.weight == "auto" and self.metric.ratio == "bradley-terry":
            raise ValueError(
                f"metric.ratio bradley-terry reads the labels that the reward contradicts, and select.labels {labels} "
                "leaves none: set select.labels: keep, or another ratio"
            )
        if labels != "keep" and self.source is not None and self.reward is None:
            raise ValueError(f"select.labels {labels} reads the rewards: add a reward section")
        return self

    @model_validator(mode="after")
    def _places_lie_apart(self) -> "Config":
        """What is written inside the source would be read as data by the next run."""
        sections = {"source.path": self.source, "output.path": self.output}
        places = {"scored": self.scored, **{name: s.path for name, s in sections.items() if s is not None}}
        full = {name: _normalised(path) for name, path in places.items()}
        for outer, inner in itertools.permutations(full, 2):
            if full[inner] == full[outer]:
                raise ValueError(f"{inner} and {outer} must differ, got {places[inner]} for both")
            if full[inner].startswith(full[outer] + "/"):
                raise ValueError(f"{inner} ({places[inner]}) lies inside {outer}; give a folder outside it")
        return self

    @model_validator(mode="after")
    def _variants_are_usable(self) -> "Config":
        names = [variant.name for variant in self.sweep]
        if len(set(names)) < len(names):
            raise ValueError(f"sweep gives a name twice: {names}; each variant is written to a folder of its name")
        self.variants()
        return self

    def variants(self) -> list["Config"]:
        """A config for each selection: one for each variant of the sweep, or this one.

        Raises:
            ValidationError: a variant's keys or values are wrong.
        """
        if not self.sweep:
            return [self]
        select = {} if self.select is None else self.select.model_dump(exclude_unset=True)
        base = {**self.model_dump(exclude={"sweep", "preset"}), "select": select}
        return [variant.applied(base, Config.model_validate) for variant in self.sweep]

    def torch_models(self) -> dict[str, TorchModel]:
        """The models that alignpot runs itself, by role, in the order policy, reference, reward."""
        roles = {"policy": self.policy, "reference": self.reference, "reward": self.reward}
        return {role: m for role, m in roles.items() if isinstance(m, TorchModel)}


def resolved(config: Config) -> dict[str, Any]:
    """The config with every default filled in, as JSON-ready values."""
    return config.model_dump(mode="json")
