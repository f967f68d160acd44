"""Scores that the source already holds, for pairs of any format.

Rewards are, in this order: `reward_chosen` and `reward_rejected`; one other spelling of the two; the row's own
candidates; `margin`, which is stored as reward_chosen = margin and reward_rejected = 0. Those that have a name stand in
`reward_NAME_chosen` and `reward_NAME_rejected`. Log-probs and token counts
have the names of `pipeline.schema`: sums over response tokens, natural logarithm.

`read_scores` reads one row, `column_scores` whole columns. Both give the same scores and leave out the same rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema as s
from pipeline.drops import DropRow, Reason
from pipeline.errors import SchemaError
from pipeline.sources.columns import Columns, Kind, Row, described
from pipeline.sources.ranked import number_of, numbers_of
from pipeline.sources.rows import Format, PairRow, Rewards

OWN_REWARDS: Final = (s.REWARD_CHOSEN, s.REWARD_REJECTED)
OTHER_REWARDS: Final = (
    ("score_chosen", "score_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
)
CANDIDATE_SCORES: Final = (s.REWARDS_ALL, "all_rm_scores", "rewards", "ratings")
MARGIN: Final = "margin"
POLICY_LOGPS: Final = (s.POLICY_LOGP_CHOSEN, s.POLICY_LOGP_REJECTED)
REFERENCE_LOGPS: Final = (s.REFERENCE_LOGP_CHOSEN, s.REFERENCE_LOGP_REJECTED)
RESPONSE_COUNTS: Final = (s.NUM_TOKENS_CHOSEN, s.NUM_TOKENS_REJECTED)
ALL_SCORE_COLUMNS: Final = (
    *(name for pair in (OWN_REWARDS, *OTHER_REWARDS) for name in pair),
    *CANDIDATE_SCORES,
    *(MARGIN, *POLICY_LOGPS, *REFERENCE_LOGPS, s.NUM_TOKENS_PROMPT, *RESPONSE_COUNTS, s.TRUNCATED),
)

# Rounding can lift the log-prob of a certain response above 0, by no more than this.
_LOGP_ROUNDING: Final = 1e-3
_MOST_TOKENS: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePlan:
    """Which columns of the source give which scores; an empty plan reads none."""

    rewards: tuple[str, ...] = ()
    """Chosen and rejected, or `margin` alone, or nothing where only the candidates give them."""
    candidates: bool = False
    """Rewards come from the format's own candidates, unless `rewards` names columns for the row's pair."""
    rewards_all: str | None = None
    named: tuple[str, ...] = ()
    """Columns of rewards that have names, which they keep."""
    logps: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    truncated: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns without which a row has no usable scores."""
        return (*self.rewards, *self.named, *self.logps, *self.counts)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the source that this plan looks at."""
        extra = [self.rewards_all] if self.rewards_all else []
        return (*self.needs, *extra, *([s.TRUNCATED] if self.truncated else []))


NO_SCORES: Final = ScorePlan()


def plan_scores(
    columns: Columns,
    known: Format,
    *,
    rewards: bool,
    policy_logps: bool,
    reference_logps: bool,
    named: Sequence[str] = (),
) -> ScorePlan:
    """Where each wanted score comes from. named: names of the rewards that are read by name.

    Raises:
        SchemaError: a wanted score has no column, or rewards have several that could differ.
    """
    logps = (*(POLICY_LOGPS if policy_logps else ()), *(REFERENCE_LOGPS if reference_logps else ()))
    for name in named:
        lacking = [column for column in s.reward_columns(name) if columns.get(column) is not Kind.NUMBER]
        if lacking:
            raise SchemaError(
                f"rewards.{name} of backend columns needs {lacking} as numbers; the source has {described(columns)}. "
                f"Say where they stand, as in source: {{columns: {{{lacking[0]}: COLUMN, ...}}}}."
            )
    counts: tuple[str, ...] = RESPONSE_COUNTS if policy_logps else ()
    missing = [name for name in (*logps, *counts) if columns.get(name) is not Kind.NUMBER]
    if missing:
        raise SchemaError(
            f"backend: columns needs {missing} as numbers; the source has {described(columns)}. "
            "Add them, or set a model to compute them."
        )
    if counts and columns.get(s.NUM_TOKENS_PROMPT) is Kind.NUMBER:
        counts = (s.NUM_TOKENS_PROMPT, *counts)
    truncated = policy_logps and columns.get(s.TRUNCATED) is Kind.FLAG
    of_names = tuple(column for name in named for column in s.reward_columns(name))
    plan = ScorePlan(named=of_names, logps=logps, counts=counts, truncated=truncated)
    if not rewards:
        return plan
    candidates = known.gives_rewards(columns)
    listed = next((name for name in CANDIDATE_SCORES if columns.get(name) is Kind.NUMBERS), None)
    return replace(
        plan,
        rewards=_reward_columns(columns, candidates=candidates),
        candidates=candidates,
        rewards_all=None if candidates else listed,
    )


def read_scores(row: Row, pair: PairRow, plan: ScorePlan) -> dict[str, Any]:
    """The planned scores of one row under the names of `pipeline.schema`, or DropRow."""
    scores: dict[str, Any] = {**_rewards(row, pair, plan), **{name: number_of(row.get(name)) for name in plan.named}}
    for name in (*plan.logps, *plan.counts):
        value = number_of(row.get(name))
        if not _fits(name, value):
            raise DropRow(Reason.POSITIVE_LOGP if name in plan.logps else Reason.INVALID_TOKEN_COUNT)
        scores[name] = value if name in plan.logps else int(value)
    if plan.truncated:
        scores[s.TRUNCATED] = row.get(s.TRUNCATED)
        if not isinstance(scores[s.TRUNCATED], (bool, type(None))):
            raise DropRow(Reason.WRONG_TYPE)
    return scores


def column_scores(columns: Mapping[str, pa.Array], plan: ScorePlan, good: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """`read_scores` of whole columns, without candidates. Rows that have no usable score are no longer `good`."""
    scores: dict[str, pa.Array] = {}
    for name in plan.needs:
        values = _floats(columns[name])
        good &= np.isfinite(values) & _fits(name, values)
        if name in plan.counts:
            values = np.where(good, values, 0).astype(np.int64)
        scores[name] = pa.array(values)
    if plan.rewards:
        scores[s.REWARD_CHOSEN] = scores.pop(plan.rewards[0])
        margin_alone = plan.rewards == (MARGIN,)
        scores[s.REWARD_REJECTED] = pa.array(np.zeros(len(good))) if margin_alone else scores.pop(plan.rewards[1])
    if plan.rewards_all:
        scores[s.REWARDS_ALL] = every = columns[plan.rewards_all].cast(pa.list_(pa.float64()))
        num_odd = np.concatenate([[0], np.cumsum(~np.isfinite(_floats(every.values)))])
        good &= np.diff(num_odd[every.offsets.to_numpy()]) == 0
    if plan.truncated:
        scores[s.TRUNCATED] = columns[s.TRUNCATED]
    return scores


def _fits(name: str, values: Any) -> Any:
    """Whether a finite score, or each of an array, can be what its column says."""
    if name in {*POLICY_LOGPS, *REFERENCE_LOGPS}:
        return values <= _LOGP_ROUNDING
    if name in {s.NUM_TOKENS_PROMPT, *RESPONSE_COUNTS}:
        return (values >= 1) & (values <= _MOST_TOKENS) & (values == np.trunc(values))
    return True


def _reward_columns(columns: Columns, *, candidates: bool) -> tuple[str, ...]:
    spellings = (OWN_REWARDS, *OTHER_REWARDS)
    pairs = [pair for pair in spellings if all(columns.get(name) is Kind.NUMBER for name in pair)]
    if OWN_REWARDS in pairs:
        return OWN_REWARDS
    if len(pairs) > 1:
        raise SchemaError(
            f"the source has {len(pairs)} spellings of rewards: {pairs}. "
            f"Rename the wanted two to {OWN_REWARDS[0]} and {OWN_REWARDS[1]}, or leave the others out."
        )
    if pairs or candidates:
        return pairs[0] if pairs else ()
    if columns.get(MARGIN) is Kind.NUMBER:
        return (MARGIN,)
    known = ", ".join("/".join(pair) for pair in spellings)
    raise SchemaError(
        f"reward backend columns needs rewards; the source has {described(columns)}. "
        f"Wanted {known}, {MARGIN}, or candidates with scores; or set a reward model."
    )


def _rewards(row: Row, pair: PairRow, plan: ScorePlan) -> Mapping[str, Any]:
    if not (plan.rewards or plan.candidates):
        return {}
    own = pair.rewards
    if plan.candidates and (pair.picked or not plan.rewards):
        if not isinstance(own, Rewards):
            raise DropRow(own.reason if own else Reason.NULL_SCORE)
        return {s.REWARD_CHOSEN: own.chosen, s.REWARD_REJECTED: own.rejected, s.REWARDS_ALL: list(own.all)}
    chosen = number_of(row.get(plan.rewards[0]))
    rejected = 0.0 if plan.rewards == (MARGIN,) else number_of(row.get(plan.rewards[1]))
    rewards = {s.REWARD_CHOSEN: chosen, s.REWARD_REJECTED: rejected}
    if plan.candidates:
        every = list(own.all) if isinstance(own, Rewards) else None
    else:
        listed = row.get(plan.rewards_all) if plan.rewards_all else None
        every = None if listed is None else list(numbers_of(listed))
    return {**rewards, s.REWARDS_ALL: every}


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    """The numbers as float64, null as NaN."""
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
