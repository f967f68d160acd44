"""The whole file of `run`, `score`, `select` and `report`: its sections, its sweep, and the rules across sections."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from pipeline.config.lazy import Score, why_not_lazy
from pipeline.config.load import load, parse
from pipeline.config.models import ColumnsModel, Estimate, Model, Run, TorchModel
from pipeline.config.output import Output
from pipeline.config.presets import PresetName, with_preset
from pipeline.config.rewards import ColumnsReward, HasRewards, Reward, Rewards
from pipeline.config.section import LAYOUT, PER_OUTPUT, Section, Url
from pipeline.config.selection import Metric, Objective, Select
from pipeline.config.source import NamedSource, Source, Storage, Tokens
from pipeline.config.table import table_of_variant


class Variant(Section):
    """One selection of a sweep: keys of objective, metric and select that differ from those sections."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", json_schema_extra=LAYOUT)
    """Folder of this subset, below output.path."""
    objective: dict[str, Any] = Field(default_factory=dict)
    """Keys of the objective. With a name, no parameter of the objective section is taken over."""
    metric: dict[str, Any] = Field(default_factory=dict)
    """Keys of the metric."""
    select: dict[str, Any] = Field(default_factory=dict)
    """Keys of select. `fraction`, `k` and `stats_from` replace each other."""


class Config(HasRewards):
    """The whole file of `alignpot run`, `score`, `select` and `report`.

    `score` needs source or sources, scored and the models that the metric reads; `select` needs scored, select and
    output.
    """

    preset: PresetName | None = Field(default=None, json_schema_extra=LAYOUT)
    """Settings of the paper's authors as defaults of tokens, objective, metric and select. `paper`: SimPO, z-scores,
    w = 1, 40%. `paper-selfplay`, that of their self-play: w = 2.5, 25%. The authors break ties by an unstable sort and
    order rows by score; here ties go by id, and rows keep the order of the scored dataset."""
    source: Source | None = None
    sources: tuple[NamedSource, ...] = ()
    """Several sources in place of `source`, such as `[{name: a, path: ORG/A, limit: 10000}, {name: b, path: ORG/B}]`.
    The column `source_name` tells where a row is from, and ids of an `id_column` become NAME:ID."""
    storage: Storage = Storage()
    policy: Model | None = None
    """The model to be trained. Needed if the metric reads the implicit margin."""
    reference: Model | None = None
    """The reference model of the objective. Needed by objectives that read one, such as dpo."""
    reward: Reward | None = None
    """Where rewards come from. Needed if the metric reads the explicit margin."""
    rewards: Rewards | None = None
    """Several rewards in place of `reward`, by name, each a section like it: `{armorm: {backend: classifier, model:
    ORG/A}, gpt: {backend: columns}}`. Each is stored raw, as `reward_NAME_chosen` and `reward_NAME_rejected`, and
    `metric.combine` makes one margin of them."""
    tokens: Tokens = Tokens()
    score: Score = Score()
    scored: Url = Field(json_schema_extra=LAYOUT)
    """Folder or URL of the scored dataset: every row once, with rewards, log-probs and token counts."""
    objective: Objective = Objective()
    metric: Metric = Metric()
    select: Select | None = None
    sweep: tuple[Variant, ...] = Field(default=(), json_schema_extra=PER_OUTPUT)
    """Several selections at once, such as `[{name: auto, metric: {weight: auto}}, {name: tenth, select: {fraction:
    0.1}}]`. Default: one selection, as the sections objective, metric and select say."""
    output: Output | None = None
    run: Run = Run()
    estimate: Estimate = Estimate()

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, data: Any) -> Any:
        return with_preset(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _one_way_to_name_sources(self) -> "Config":
        names = [source.name for source in self.sources]
        if self.source is not None and names:
            raise ValueError("takes source or sources, not both")
        if len(set(names)) < len(names):
            raise ValueError(f"sources gives a name twice: {names}")
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("sources gives weights to some of its members: give one to each, or none")
        return self

    @model_validator(mode="after")
    def _metric_has_its_models(self) -> "Config":
        name = self.metric.name
        if name == "difficulty" and self.objective.name != "dpo":
            raise ValueError("metric difficulty is the smallest gap of DPO's implicit rewards: set objective.name: dpo")
        if not self.all_sources():
            return self
        if self.metric.reads_implicit:
            if self.policy is None:
                raise ValueError(f"metric {name} reads the implicit margin: add a policy section")
            if self.objective.reads_reference and self.reference is None:
                raise ValueError(
                    f"objective {self.objective.name} needs reference log-probs: add a reference section, "
                    "or choose an objective without one, such as simpo"
                )
        if self.metric.reads_explicit and not self.members:
            raise ValueError(f"metric {name} reads the explicit margin: add a reward section")
        if self.policy is None and self.reference is None:
            if self.metric.takes_out_length:
                raise ValueError(f"metric.length {self.metric.length} reads token counts: add a policy section")
            if self.select is not None and self.select.length_rules:
                raise ValueError(f"select.{self.select.length_rules[0]} reads token counts: add a policy section")
        return self

    @model_validator(mode="after")
    def _bands_have_their_models(self) -> "Config":
        bands = {} if self.select is None or not self.all_sources() else self.select.band or {}
        for term in bands:
            if (term == "explicit" and not self.members) or (term.startswith("implicit") and self.policy is None):
                model = "reward" if term == "explicit" else "policy"
                raise ValueError(f"select.band {term} reads what the {model} gives: add a {model} section")
        return self

    @model_validator(mode="after")
    def _models_fit_each_other(self) -> "Config":
        both = [model for model in (self.policy, self.reference) if isinstance(model, TorchModel)]
        for name in ("fp8", "compile", "deterministic"):
            if len({getattr(model, name) for model in both}) > 1:
                raise ValueError(
                    f"{name} must be the same for policy and reference: otherwise the roundings of one would stay in "
                    "the difference of their log-probs"
                )
        if isinstance(self.policy, ColumnsModel) and isinstance(self.reference, TorchModel):
            raise ValueError(
                "policy.backend columns takes token counts from the source, and a torch reference would replace them: "
                "use columns for both, or torch for both"
            )
        given = next((section for section in self.members.values() if not isinstance(section, ColumnsReward)), None)
        if self.metric.reads_candidates and (given is not None or (self.rewards and self.all_sources())):
            backend = "rewards" if given is None else f"reward.backend {given.backend}"
            raise ValueError(
                f"metric {self.metric.name} reads the rewards of all candidates, and {backend} gives only those of the "
                "pair: use reward.backend columns, or another metric or metric.explicit"
            )
        return self

    @model_validator(mode="after")
    def _labels_have_their_rewards(self) -> "Config":
        labels = "keep" if self.select is None else self.select.labels
        if labels == "keep":
            return self
        if self.metric.weight == "auto" and self.metric.ratio == "bradley-terry":
            raise ValueError(
                f"metric.ratio bradley-terry reads the labels that the reward contradicts, and select.labels {labels} "
                "leaves none: set select.labels: keep, or another ratio"
            )
        if self.all_sources() and not self.members:
            raise ValueError(f"select.labels {labels} reads the rewards: add a reward section")
        return self

    @model_validator(mode="after")
    def _lazy_scores_can_be_left_out(self) -> "Config":
        proxy = self.score.proxy
        if proxy is not None and not self.score.lazy:
            raise ValueError("score.proxy says which rows score.lazy leaves to the policy: set score.lazy: true")
        if not self.score.lazy or self.sweep:  # the variants of a sweep are checked one by one
            return self
        if self.select is None:
            raise ValueError("score.lazy leaves out what no selection can keep: add a select section")
        reason = why_not_lazy(self.metric, self.select)
        if reason is not None:
            raise ValueError(f"score.lazy: {reason}, or set score.lazy: false")
        if self.all_sources() and not isinstance(self.policy, TorchModel):
            raise ValueError("score.lazy saves forwards of the policy, and none is run: set score.lazy: false")
        if any(model.fp8 for model in (*self.torch_models().values(), proxy) if model is not None):
            raise ValueError("score.lazy does not go with fp8, which is checked on the first rows: set one to false")
        if proxy is not None and self.objective.reads_reference:
            raise ValueError(
                f"score.proxy ranks by log-probs of one model, and objective {self.objective.name} reads a reference: "
                "choose an objective without one, such as simpo, or leave score.proxy out"
            )
        if proxy is not None and (self.select.min_score is not None or self.select.max_score is not None):
            raise ValueError(
                "score.proxy has scores of its own, which bounds of the policy's scores do not fit: leave "
                "out select.min_score and max_score, or score.proxy"
            )
        return self

    @model_validator(mode="after")
    def _places_lie_apart(self) -> "Config":
        """An output inside the source would be read as data by the next run."""
        places = {"scored": self.scored, **{f"{key}.path": source.path for key, source in self.all_sources().items()}}
        if self.run.cache is not None:
            places["run.cache"] = self.run.cache
        if self.output is not None:
            places["output.path"] = self.output.path
            if self.output.table is not None and self.output.table.kind != "iceberg":
                places["output.table.path"] = self.output.table.path
        full = {
            name: url.rstrip("/") if "://" in url else str(Path(url).expanduser().resolve())
            for name, url in places.items()
        }
        for outer, inner in itertools.permutations(full, 2):
            if outer.startswith("source") and inner.startswith("source"):
                continue
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
        outputs = [variant.output for variant in self.variants()]
        tables = [output.table.path for output in outputs if output is not None and output.table is not None]
        if len(set(tables)) < len(tables):
            raise ValueError(f"two variants of the sweep would go to one table: {tables}; give them other names")
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
        return [_applied(variant, base) for variant in self.sweep]

    def all_sources(self) -> dict[str, Source]:
        """Every source, by its key: the only one, or the members of `sources`."""
        if self.source is not None:
            return {"source": self.source}
        return {f"sources.{index}": source for index, source in enumerate(self.sources)}


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML config and apply `key.path=value` overrides. Raises a ConfigError as `load.load`."""
    return load(Config, path, overrides)


def parse_config(data: Mapping[str, Any], *, where: str = "config") -> Config:
    """Check a mapping of sections. Raises a ConfigError as `load.parse`."""
    return parse(Config, data, where)


def resolved(config: Config) -> dict[str, Any]:
    """The config with every default filled in, as JSON-ready values."""
    return config.model_dump(mode="json")


def _applied(variant: Variant, base: Mapping[str, Any]) -> Config:
    """The config with the variant's keys over it and an output folder of its own.

    base: a dump of the config, whose select section holds only the keys that the user gave.

    Raises:
        ValidationError: with `sweep` and the variant's name before the keys.
    """
    replaced: set[str] = set()
    if variant.select.keys() & {"fraction", "k", "stats_from"}:
        replaced = {"fraction", "k", "stats_from"}
    if "stats_from" in variant.select:
        replaced |= {"min_score", "max_score"}
    select = {key: value for key, value in base["select"].items() if key not in replaced}
    own = {
        **base,
        "objective": variant.objective if "name" in variant.objective else {**base["objective"], **variant.objective},
        "metric": {**base["metric"], **variant.metric},
        "select": {**select, **variant.select},
    }
    if base["output"] is not None:
        hub, table = base["output"]["hub"], base["output"]["table"]
        own["output"] = {
            **base["output"],
            "path": f"{base['output']['path'].rstrip('/')}/{variant.name}",
            "hub": hub and f"{hub}-{variant.name}",
            "table": table and {**table, "path": table_of_variant(table["kind"], table["path"], variant.name)},
        }
    try:
        return Config.model_validate(own)
    except ValidationError as error:
        problems = [
            InitErrorDetails(
                type=problem["type"],
                loc=("sweep", variant.name, *problem["loc"]),
                input=problem["input"],
                ctx=problem.get("ctx", {}),
            )
            for problem in error.errors(include_url=False)
        ]
        raise ValidationError.from_exception_data(error.title, problems) from None
