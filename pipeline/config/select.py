"""The select and output sections: which of the ranked pairs are kept, and where they are written."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import BY_CONTENT, LAYOUT, Section, Url

Labels = Literal["keep", "drop", "swap"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Select(Section):
    """The rules, in the order in which they are applied: labels, score bounds, per_prompt, number of rows (shared out
    by quotas), deduplicate. Give `fraction` or `k`, a score bound, or `stats_from`.

    Statistics of the metric are taken over all rows that have a score, after labels.
    """

    fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the rows that labels, score bounds and per_prompt leave, rounded down."""
    k: int | None = Field(default=None, ge=1)
    """Number of rows to keep, instead of `fraction`."""
    min_score: float | None = Field(default=None, allow_inf_nan=False)
    """Lowest score to keep. Without `fraction` and `k`, every row within the score bounds is kept."""
    max_score: float | None = Field(default=None, allow_inf_nan=False)
    """Highest score to keep."""
    labels: Labels = "keep"
    """What becomes of pairs whose rejected response has the higher reward: keep them, drop them, or swap the sides."""
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
    seed: int = 0
    """Seed of the metric `random`."""
    stats_from: Url | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """A subset's `_SUCCESS.json`. Its statistics and thresholds are applied to this dataset, row by row. Other keys of
    the section may be left out; if given, they must equal those of that subset."""
    engine: Literal["auto", "plain", "ray"] = Field(default="auto", json_schema_extra=LAYOUT)
    """`plain` works in threads, `ray` in tasks of a cluster. `auto` takes Ray if there is a cluster to join. The bytes
    are the same."""

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


class Output(Section):
    """Where the subset goes and in which formats."""

    path: Url = Field(json_schema_extra=LAYOUT)
    """Folder or URL of the subset."""
    formats: tuple[Literal["hf", "parquet"], ...] = Field(default=("hf", "parquet"), min_length=1)
    """`hf` is a dataset for `datasets.load_from_disk`."""
    slim: bool = False
    """Keep the columns prompt, chosen and rejected only."""
    rows_per_file: int = Field(default=100_000, ge=1, json_schema_extra=LAYOUT)
    """Most rows of one file."""

    @field_validator("formats")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a format twice")
        return tuple(sorted(value))
