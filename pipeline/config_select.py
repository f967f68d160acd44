"""The select section of the config: which of the ranked pairs are kept. Imports only pydantic."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config_section import Section, checked_url

Labels = Literal["keep", "drop", "swap"]
Deduplicate = Literal["none", "exact", "near"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Select(Section):
    """The rules, in the order they are applied: labels, score band, per_prompt, how many by quotas, deduplicate."""

    fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the rows that labels, score band and per_prompt leave, rounded down."""
    k: int | None = Field(default=None, ge=1)
    min_score: float | None = Field(default=None, allow_inf_nan=False)
    """Lowest score to keep; alone or with max_score it is the whole rule."""
    max_score: float | None = Field(default=None, allow_inf_nan=False)
    labels: Labels = "keep"
    """What becomes of pairs whose rejected answer has the higher reward."""
    per_prompt: int | None = Field(default=None, ge=1)
    """Most pairs of one prompt, best first."""
    deduplicate: Deduplicate = "none"
    """Leave out pairs whose text is that of a better one: the same but for case and white space, or similar."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 3-grams from which on two pairs are near-duplicates."""
    group_by: str | None = None
    """Column whose values share the selected rows by `quotas`."""
    quotas: Literal["proportional", "equal"] | dict[str, Weight] = "proportional"
    """By the size of a group, the same for each, or by weights given for some groups."""
    seed: int = 0
    stats_from: str | None = None
    """A subset's `_SUCCESS.json`: its statistics and thresholds are applied to this dataset. Other keys of the section
    may be left out, or must be those that it was made with."""
    engine: Literal["auto", "plain", "ray"] = "auto"
    """Where the passes run; auto takes Ray where there is a cluster to join. Never changes what is selected."""

    _stats_from = field_validator("stats_from")(checked_url)

    @field_validator("quotas", mode="before")
    @classmethod
    def _names_as_text(cls, value: Any) -> Any:
        """Groups of numbers and truth values are named as Arrow writes them."""
        if not isinstance(value, dict):
            return value
        return {str(name).lower() if isinstance(name, bool) else str(name): weight for name, weight in value.items()}

    @model_validator(mode="after")
    def _one_rule(self) -> "Select":
        counts = (self.fraction is not None) + (self.k is not None)
        by_score = self.min_score is not None or self.max_score is not None
        if counts == 2:
            raise ValueError("takes exactly one of fraction and k")
        if self.stats_from is not None:
            return self
        if not counts and not by_score:
            raise ValueError("takes exactly one of fraction and k, or min_score, max_score or stats_from")
        if not counts and self.group_by is not None:
            raise ValueError("group_by shares out a number of rows: give fraction or k")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Select":
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ValueError(f"min_score {self.min_score} is above max_score {self.max_score}")
        if self.group_by is None and self.quotas != "proportional":
            raise ValueError("quotas needs group_by, the column that names the groups")
        if isinstance(self.quotas, dict) and not self.quotas:
            raise ValueError("quotas names no group; give weights, or proportional or equal")
        return self
