"""The sections objective, metric and select: how pairs are ranked, and which are kept.

Names, formulas and defaults of objectives and metrics stand in `pipeline.metrics`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from pipeline.config.combine import Agreement, Combine
from pipeline.config.section import BY_CONTENT, LAYOUT, OneOf, Section, Url
from pipeline.metrics.objectives import OBJECTIVES
from pipeline.metrics.potential import EXPLICIT, EXPLICIT_SIGNED, MEAN, METRICS
from pipeline.metrics.ratio import RATIO_METHODS
from pipeline.shown import listed
from pipeline.where import parse_where

Explicit = Literal["signed", "absolute", "candidates"]
Labels = Literal["keep", "drop", "swap"]
Length = Literal["keep", "residual", "residual_monotone"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Quantile = Annotated[float, Field(ge=0, le=1)]
BandTerm = Literal["score", "explicit", "implicit", "implicit_abs", "length_gap"]
Order = Literal["as_read", "score_descending", "score_ascending", "length_ascending", "length_descending"]
_LATER: Final = (
    *("where", "disagreement", "split", "agreement", "max_length_ratio", "max_length_gap"),
    *("band", "order", "weights"),
)


class Objective(Section):
    """The training objective, which gives the implicit reward its form.

    A parameter that is left out takes the objective's default; one that the objective does not use is refused.
    `alignpot objectives` lists formulas, parameters, defaults and sources.
    """

    name: Annotated[str, OneOf(OBJECTIVES)] = "simpo"
    """The objective that the trainer will use."""
    beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Scale of the implicit reward. Default: the objective's own."""
    alpha: float | None = Field(default=None, allow_inf_nan=False)
    """alpha of alphapo, r-dpo and alpha-dpo; at least 0, except for alphapo. Default: the objective's own."""
    penalty: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """lambda of dpop. Default: the objective's own."""
    length_sign: Literal[1, -1] | None = None
    """For r-dpo: 1 adds alpha x tokens to the reward of a side, -1 subtracts it. Default: 1."""
    gamma: float | None = Field(default=None, ge=0, allow_inf_nan=False, json_schema_extra=LAYOUT)
    """Target margin of the loss of simpo and alphapo. It moves no rank: the report counts the pairs that lie below it.
    Default: 0.5, as in TRL."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        name = data.get("name", "simpo")
        definition = OBJECTIVES.get(name) if isinstance(name, str) else None
        parameters = {*cls.model_fields} - {"name"}
        given = {key: value for key, value in data.items() if value is not None or key not in parameters}
        return given if definition is None else {**definition.defaults, **given}

    @model_validator(mode="after")
    def _only_used_parameters(self) -> "Objective":
        definition = OBJECTIVES[self.name]
        uses = [*definition.defaults, *(["gamma"] if definition.target is not None else [])]
        unused = [name for name in self.parameters if name not in uses]
        if unused:
            takes = f"uses {' and '.join(uses)}" if uses else "takes no parameter"
            raise ValueError(f"{self.name} does not use {' and '.join(unused)}; leave it out ({self.name} {takes})")
        if self.alpha is not None and self.alpha < 0 and not definition.negative_alpha:
            remedy = "; set length_sign: -1 instead" if "length_sign" in uses else ""
            raise ValueError(f"alpha of {self.name} must be at least 0{remedy}")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialise(self).items() if value is not None}

    @property
    def parameters(self) -> Mapping[str, float]:
        """The parameters that the objective uses, by name, defaults filled in."""
        return {name: value for name, value in self if name != "name" and value is not None}

    @property
    def target(self) -> float | None:
        """The margin that the loss asks for; None if it asks for none."""
        return OBJECTIVES[self.name].target if self.gamma is None else self.gamma

    @property
    def reads_reference(self) -> bool:
        """Whether the implicit reward is computed from log-probs of a reference."""
        return OBJECTIVES[self.name].reads_reference


class Metric(Section):
    """What pairs are ranked by. A setting that the metric does not read is ignored.

    `alignpot metrics` lists formulas and sources of the metrics and of the ways to set the ratio.
    """

    name: Annotated[str, OneOf(METRICS)] = "potential"
    """The metric; pairs of the highest score rank first."""
    weight: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """w of M_AP = explicit - w x implicit. `auto` estimates it from the scores by the method `ratio`."""
    ratio: Annotated[str, OneOf(RATIO_METHODS)] = "whitening"
    """How `weight: auto` estimates the ratio of the two margins."""
    normalise: Literal["zscore", "robust", "rank", "none"] = "zscore"
    """How each margin is normalised over the whole set before they are combined: z-scores, `robust` (median and median
    absolute deviation), ranks, or not at all."""
    explicit: Explicit = "signed"
    """Explicit margin: reward of chosen minus reward of rejected, its magnitude, or the range of rewards over all
    candidates of the prompt."""
    length: Length = "keep"
    """What becomes of the part of the explicit margin that the length gap explains (tokens of chosen minus those of
    rejected): `keep` it, or take it out. `residual` fits a straight line through 0 to the ranked pairs by least
    squares, `residual_monotone` the best curve that only rises, or only falls, with the gap. The fits read no labels: a
    pair counts like the same pair turned round. What is left is the explicit margin of metric, report and subset."""
    implicit: Literal["absolute", "signed"] = "absolute"
    """Implicit margin: its magnitude, or implicit reward of chosen minus that of rejected."""
    order: Literal["smallest", "largest"] = "smallest"
    """Which implicit margins the metric `implicit` ranks first."""
    combine: Combine | None = None
    """How several rewards become one explicit margin: the name of a rule, or a section. Default: the mean of all, if
    the scored dataset holds several."""

    @model_validator(mode="after")
    def _ratio_of_margins(self) -> "Metric":
        if self.name == "potential" and self.weight == "auto" and self.normalise == "rank":
            raise ValueError("weight: auto is a ratio of margins, which ranks have lost: choose another normalise")
        if self.length != "keep" and self.reads_candidates:
            raise ValueError(
                f"length: {self.length} needs the lengths of all candidates, which are not known: set explicit: signed"
            )
        if self.name == "divergence" and self.combine is not None and self.combine.rule != "mean":
            raise ValueError("divergence weighs all rewards alike: leave combine.rule out")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was before there were `combine` and `length`, where they are not set."""
        found = serialise(self)
        return {k: value for k, value in found.items() if value is not None and (k, value) != ("length", "keep")}

    @property
    def takes_out_length(self) -> bool:
        """Whether the explicit margin that the metric reads is without what the length gap explains."""
        return self.length != "keep" and self.reads_explicit

    @property
    def reads_explicit(self) -> bool:
        """Whether the metric reads rewards."""
        return not {EXPLICIT, EXPLICIT_SIGNED, MEAN}.isdisjoint(METRICS[self.name].terms(self))

    @property
    def reads_implicit(self) -> bool:
        """Whether the metric reads log-probs. A potential of weight 0 does not."""
        return any(term.startswith("margin_implicit") for term in METRICS[self.name].terms(self))

    @property
    def reads_candidates(self) -> bool:
        """Whether the metric reads the rewards of all candidates."""
        terms = METRICS[self.name].terms(self)
        return MEAN in terms or (EXPLICIT in terms and self.explicit == "candidates")


class Select(Section):
    """The rules, in the order in which they are applied: where, disagreement, labels, agreement, score bounds, band,
    lengths, per_prompt, number of rows (shared out by quotas), deduplicate, split. Give `fraction` or `k`, a score
    bound, a band, or `stats_from`.

    Statistics of the metric are taken over all rows that have a score, after where, disagreement, labels and agreement.
    """

    fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the rows that labels, score bounds and per_prompt leave, rounded down."""
    k: int | None = Field(default=None, ge=1)
    """Number of rows to keep, instead of `fraction`."""
    min_score: float | None = Field(default=None, allow_inf_nan=False)
    """Lowest score to keep. Without `fraction` and `k`, every row within the score bounds is kept."""
    max_score: float | None = Field(default=None, allow_inf_nan=False)
    """Highest score to keep."""
    band: dict[BandTerm, tuple[Quantile, Quantile]] | None = Field(default=None, min_length=1)
    """Keep rows between two quantiles of all ranked rows, both included: `[0.2, 0.8]` of the score, or of terms by
    name, such as `{implicit_abs: [0, 0.5], length_gap: [0.05, 0.95]}`. explicit: the margin as metric.explicit says;
    implicit: the signed margin; length_gap: tokens of chosen minus those of rejected. Rows without a term are left out.
    Without `fraction` and `k`, every row within the bands is kept."""
    max_length_ratio: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Most tokens of the longer response for each token of the shorter one."""
    max_length_gap: int | None = Field(default=None, ge=0)
    """Most tokens that the longer response may have beyond the shorter one."""
    where: str | None = None
    """Condition on the columns of the scored dataset, such as `lang == "de" and num_tokens_chosen < 512`. Rows for
    which it is false or null are left out, also of the statistics. The grammar stands in `pipeline/where.py`."""
    disagreement: Literal["keep", "majority", "drop"] | None = None
    """What becomes of rows that hold the same prompt and the same two answers, and prefer different ones: `keep` them,
    keep those of the `majority` (none if there is no majority), or `drop` them all. The report counts them. Default:
    they are not looked for, because that takes a reading of every text."""
    labels: Labels = "keep"
    """What becomes of pairs whose rejected response has the higher reward: keep them, drop them, or swap the sides."""
    agreement: Agreement | None = None
    """Rows on which too few of several rewards prefer chosen are left out: `{at_least: 2}`."""
    per_prompt: int | None = Field(default=None, ge=1)
    """Most pairs of one prompt; the best are kept."""
    deduplicate: Literal["none", "exact", "near"] = "none"
    """Leave out pairs whose text repeats that of a better pair: `exact` (except for case and white space), or `near`
    (similar by MinHash of word 3-grams). The next best rows take their places."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 3-grams from which two pairs count as near-duplicates."""
    group_by: str | None = None
    """Column whose values share the selected rows, by `quotas`."""
    quotas: Literal["proportional", "equal"] | dict[str, Weight] = "proportional"
    """How groups share the rows: by size, equally, or by weights for some groups, such as `{code: 2, chat: 1}`."""
    split: dict[SplitName, Share] | None = None
    """Shares of the chosen rows that are held out, such as `{test: 0.05}`; the rest is `train`. All pairs of a prompt
    are on one side, which follows from the prompt and the seed alone: it is the same in every subset of every dataset.
    So the shares are approximate."""
    order: Order = "as_read"
    """Order of the rows in the files of the subset, for curricula: as they were read, by score, or by the tokens of
    both responses. Of equal rows, a hash of the id decides. Most trainers shuffle unless they are told not to."""
    weights: bool = False
    """Write a column `weight`: a smooth function of the score, 1 on average (`pipeline/metrics/weighting.py`). Training
    with TRL weighs the loss of each pair by it."""
    seed: int = 0
    """Seed of the metric `random` and of `split`."""
    stats_from: Url | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """A subset's `_SUCCESS.json`. Its statistics and thresholds are applied to this dataset, row by row. Other keys of
    the section may be left out; if given, they must equal those of that subset."""
    engine: Literal["auto", "plain", "ray"] = Field(default="auto", json_schema_extra=LAYOUT)
    """`plain` works in threads, `ray` in tasks of a cluster. `auto` takes Ray if there is a cluster to join. The bytes
    are the same."""

    @field_validator("where")
    @classmethod
    def _is_condition(cls, value: str | None) -> str | None:
        return None if value is None else parse_where(value).text

    @field_validator("quotas", mode="before")
    @classmethod
    def _names_as_text(cls, value: Any) -> Any:
        """Groups of numbers and truth values are named as Arrow writes them."""
        if not isinstance(value, dict):
            return value
        return {str(name).lower() if isinstance(name, bool) else str(name): weight for name, weight in value.items()}

    @field_validator("band", mode="before")
    @classmethod
    def _of_the_score(cls, value: Any) -> Any:
        unknown = {*map(str, value)} - {*get_args(BandTerm)} if isinstance(value, Mapping) else set()
        if unknown:
            raise ValueError(f"knows no {listed(sorted(unknown))}; its terms are {', '.join(get_args(BandTerm))}")
        return {"score": value} if isinstance(value, (list, tuple)) else value

    @field_validator("band")
    @classmethod
    def _ends_in_order(cls, value: dict[str, tuple[float, float]] | None) -> dict[str, tuple[float, float]] | None:
        for term, (low, high) in (value or {}).items():
            if low >= high:
                raise ValueError(f"{term} takes a lower and a higher quantile, such as [0.2, 0.8]")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Select":
        by_number = self.fraction is not None or self.k is not None
        by_score = self.min_score is not None or self.max_score is not None or self.band is not None
        if self.fraction is not None and self.k is not None:
            raise ValueError("takes exactly one of fraction and k")
        if not by_number and not by_score and self.stats_from is None:
            raise ValueError("takes exactly one of fraction and k, or min_score, max_score, band or stats_from")
        if not by_number and self.stats_from is None and self.group_by is not None:
            raise ValueError("group_by shares out a number of rows: give fraction or k")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ValueError(f"min_score {self.min_score} is above max_score {self.max_score}")
        if self.group_by is None and self.quotas != "proportional":
            raise ValueError("quotas needs group_by, the column that names the groups")
        if self.quotas == {}:
            raise ValueError("quotas names no group; give weights, or proportional or equal")
        return self

    @property
    def length_rules(self) -> list[str]:
        """The keys that read the token counts."""
        found = [name for name in ("max_length_ratio", "max_length_gap") if getattr(self, name) is not None]
        found += ["band"] if "length_gap" in (self.band or {}) else []
        return found + (["order"] if self.order.startswith("length") else [])

    @property
    def unset(self) -> set[str]:
        """Keys that were not there from the start and have their default."""
        return {name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}

    @field_validator("split")
    @classmethod
    def _leaves_train(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is None:
            return None
        # Rules for file names take a name with this word for training rows, and `source.split: all` means every row.
        taken = [name for name in value if "train" in name.lower() or name.lower() == "all"]
        if taken:
            raise ValueError(f"{taken[0]} cannot be held out: name it test or validation; the rest is train")
        if not value or sum(value.values()) >= 1:
            raise ValueError("takes shares whose sum is below 1, such as {test: 0.05}; the rest is train")
        return value

    def fingerprint(self) -> dict[str, Any]:
        """Without rules that are not set and were not there from the start."""
        return {name: value for name, value in super().fingerprint().items() if name not in self.unset}
