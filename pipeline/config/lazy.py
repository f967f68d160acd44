"""The section score: whether rows that cannot be selected are left out of scoring."""

from pydantic import Field

from pipeline.config.models import TorchModel
from pipeline.config.section import LAYOUT, Section
from pipeline.config.selection import Metric, Select
from pipeline.metrics.bound import BANDS_NEED_ALL, why_no_bound
from pipeline.schema import LOGPS
from pipeline.where import parse_where


class Proxy(TorchModel):
    """A small model that says which rows the policy scores. The other keys are those of a policy of backend torch."""

    superset: float = Field(default=2.0, ge=1, allow_inf_nan=False, json_schema_extra=LAYOUT)
    """How many times as many rows as are wanted the proxy leaves to the policy. `alignpot calibrate` shows the recall
    at several sizes."""


class Score(Section):
    """Which rows policy and reference score."""

    lazy: bool = False
    """Let policy and reference score only rows that can still be selected. Rewards come first. The potential of a row
    is at most what it would be with an implicit margin of 0. Rows whose bound does not reach the threshold are left
    out: `scoring_outcome` calls them `skipped`, and `potential_bound` holds their bound. The subset is the one that
    scores of all rows would give, with the same statistics; rows that a model would drop count as long as they are
    skipped. Needs a `select` section, and a metric with a bound: potential with the absolute implicit margin, without
    ranks. A later run that needs more rows, for a larger fraction or another weight, scores these alone."""
    statistics_rows: int = Field(default=20_000, ge=2)
    """With `lazy`: rows that are scored in any case. Of them come mean and spread of the implicit margin and an
    automatic weight; those of the explicit margin come from all rows. They are those with the smallest hashes of their
    ids, so they are the same in any order of rows. Rules that leave few rows, such as a narrow `select.where`, leave
    few of these too."""
    proxy: Proxy | None = None
    """With `lazy`: a small model that scores every row first, under the same objective, such as `{model: ORG/SMALL,
    superset: 2.0}`. The policy scores the best rows by the small model's potential, `superset` times as many as are
    wanted, and those of `statistics_rows`. The subset is approximate, and manifest, report and summary say so: a row
    that the proxy ranks too low is `passed_over`, even if the policy would have chosen it. For objectives without a
    reference, and without bounds of scores."""


def why_not_lazy(metric: Metric, rule: Select) -> str | None:
    """Why a selection needs the scores of all rows; None if it does not."""
    read = [] if rule.where is None else [name for name in parse_where(rule.where).columns if name in LOGPS]
    reasons = {
        "select.deduplicate compares the texts of rows whose scores must be known: leave it out": (
            rule.deduplicate != "none"
        ),
        "which group a prompt's best row is of depends on all scores: leave out select.per_prompt or group_by": (
            rule.per_prompt is not None and rule.group_by is not None
        ),
        "select.stats_from brings statistics of another set: leave it out, and give fraction or k": (
            rule.stats_from is not None
        ),
        f"select.where reads {', '.join(read)}, which skipped rows do not have: leave it out": bool(read),
        BANDS_NEED_ALL: bool(rule.band),
    }
    return why_no_bound(metric) or next((reason for reason, holds in reasons.items() if holds), None)
