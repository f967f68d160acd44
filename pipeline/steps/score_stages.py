"""The two stages that run a model: summed log-probabilities of both answers, and rewards of both dialogues."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.drops import Reason, StageName
from pipeline.errors import ModelError
from pipeline.models.agreement import Disagreement
from pipeline.models.memory import Scores
from pipeline.models.packing import Group
from pipeline.models.rewards import ClassifierEngine
from pipeline.schema import (
    ID,
    POLICY_LOGP_CHOSEN,
    POLICY_LOGP_REJECTED,
    REFERENCE_LOGP_CHOSEN,
    REFERENCE_LOGP_REJECTED,
    REWARD_CHOSEN,
    REWARD_REJECTED,
)
from pipeline.shown import listed, quoted
from pipeline.steps.rows import drop_rows, kept_rows, set_column, spread
from pipeline.steps.tokenise import dialogue_groups, pair_groups

Role = Literal["policy", "reference"]

LOGP_COLUMNS: Final[dict[Role, tuple[str, str]]] = {
    "policy": (POLICY_LOGP_CHOSEN, POLICY_LOGP_REJECTED),
    "reference": (REFERENCE_LOGP_CHOSEN, REFERENCE_LOGP_REJECTED),
}


class SelfChecking(Protocol):
    """An engine that can compare its numbers with those of its model's own forward."""

    def disagreement(self, groups: Sequence[Group]) -> Disagreement | None:
        """How they differ on some of the groups; None if they agree, or if there is nothing to compare."""


class LogprobScorer(SelfChecking, Protocol):
    """An engine that sums log-probabilities of responses under one model; a method `close` frees what it holds."""

    def score(self, groups: Sequence[Group]) -> Scores:
        """Sums in the order of the groups' sequences."""


class ScoreLogprobs:
    """Adds the log-probabilities of both answers under one model, summed over response tokens, float64."""

    def __init__(self, engine: LogprobScorer, role: Role) -> None:
        self._engine = engine
        self._role = role
        self._checked = False

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the kept rows; drop those without a finite log-probability, each with its reason.

        Raises:
            ModelError: on the first rows, the engine's numbers are not those of the model's own forward.
        """
        rows = kept_rows(table)
        groups = pair_groups(table, rows)
        if groups and not self._checked:
            check_engine(self._engine, groups, table.column(ID).take(pa.array(rows)).to_pylist(), self._role)
            self._checked = True
        scores = self._engine.score(groups)
        outcome = _Outcome(
            values=scores.values.reshape(-1, 2), left_out=scores.left_out, otherwise=Reason.NON_FINITE_LOGP
        )
        return _with_sides(table, rows, outcome, names=LOGP_COLUMNS[self._role], stage=self._role)

    def close(self) -> None:
        """Free what the engine holds beside torch modules, such as processes of its own."""
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()


class ScoreRewards:
    """Adds the reward of both dialogues under a sequence classifier, float64."""

    def __init__(self, engine: ClassifierEngine) -> None:
        self._engine = engine
        self._checked = False

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the kept rows; drop those without a finite reward. Raises as ScoreLogprobs."""
        rows = kept_rows(table)
        groups = dialogue_groups(table, rows)
        if groups and not self._checked:
            check_engine(self._engine, groups, table.column(ID).take(pa.array(rows)).to_pylist(), "reward")
            self._checked = True
        rewards = self._engine.score(groups)
        outcome = _Outcome(
            values=rewards.values.reshape(-1, 2), left_out=rewards.left_out, otherwise=Reason.NON_FINITE_REWARD
        )
        return _with_sides(table, rows, outcome, names=(REWARD_CHOSEN, REWARD_REJECTED), stage="reward")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Outcome:
    """Numbers of both sides of some pairs, shape (pairs, 2), and why some are missing, by index in the flat array."""

    values: npt.NDArray[np.float64]
    left_out: Mapping[int, Reason]
    otherwise: Reason
    """The reason of a number that is not finite without having been left out."""

    def reasons(self) -> dict[int, Reason]:
        """Why a pair cannot be used, by its index."""
        found = dict.fromkeys(np.flatnonzero(~np.isfinite(self.values).all(axis=1)).tolist(), self.otherwise)
        return found | {index // 2: reason for index, reason in self.left_out.items()}


def check_engine(engine: SelfChecking, groups: Sequence[Group], ids: Sequence[str], stage: str) -> None:
    """Compare an engine with its model's own forward on some of the groups, whose rows have the given ids.

    Raises:
        ModelError: they differ.
    """
    found = engine.disagreement(groups)
    if found is not None:
        raise ModelError(
            f"The {stage} model cannot be trusted as it is run. {found.message}. Compared rows: "
            f"[{listed([ids[i] for i in found.groups], show=quoted)}]. Nothing was scored with it. Try dtype: float32; "
            "if that fails too, another version of torch or transformers; and report the model's class."
        )


def _with_sides(
    table: pa.Table, rows: npt.NDArray[np.int64], outcome: _Outcome, *, names: Sequence[str], stage: StageName
) -> pa.Table:
    reasons = outcome.reasons()
    usable = [i for i in range(len(rows)) if i not in reasons]
    for name, values in zip(names, outcome.values.T, strict=True):
        column = spread(values[usable].tolist(), rows[usable].tolist(), num_rows=table.num_rows, of_type=pa.float64())
        table = set_column(table, name, column)
    return drop_rows(table, {int(rows[index]): reason for index, reason in reasons.items()}, stage=stage)
