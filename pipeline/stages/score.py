"""The two stages that run a model: summed log-probabilities of both answers, and rewards of both dialogues."""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.models.logprobs import LogprobEngine, score_pairs
from pipeline.models.rewards import ClassifierEngine, score_dialogues
from pipeline.schema import (
    POLICY_LOGP_CHOSEN,
    POLICY_LOGP_REJECTED,
    REFERENCE_LOGP_CHOSEN,
    REFERENCE_LOGP_REJECTED,
    REWARD_CHOSEN,
    REWARD_REJECTED,
)
from pipeline.stages.rows import drop_rows, scored_rows, set_column, spread
from pipeline.stages.tokenise import DIALOGUE_COLUMNS, PAIR_COLUMNS, dialogues_of, pair_of

Role = Literal["policy", "reference"]

LOGP_COLUMNS: Final[dict[Role, tuple[str, str]]] = {
    "policy": (POLICY_LOGP_CHOSEN, POLICY_LOGP_REJECTED),
    "reference": (REFERENCE_LOGP_CHOSEN, REFERENCE_LOGP_REJECTED),
}


class ScoreLogprobs:
    """Adds the log-probabilities of both answers under one model, summed over response tokens, float64."""

    def __init__(self, engine: LogprobEngine, role: Role) -> None:
        self._engine = engine
        self._role = role

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the rows still to be scored; drop those whose log-probabilities are not finite."""
        rows = scored_rows(table)
        pairs = [pair_of(row) for row in table.select(PAIR_COLUMNS).take(pa.array(rows)).to_pylist()]
        chosen, rejected = score_pairs(self._engine, pairs)
        return _with_sides(table, rows, (chosen, rejected), names=LOGP_COLUMNS[self._role], stage=self._role)


class ScoreRewards:
    """Adds the reward of both dialogues under a sequence classifier, float64."""

    def __init__(self, engine: ClassifierEngine) -> None:
        self._engine = engine

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the rows still to be scored; drop those whose rewards are not finite."""
        rows = scored_rows(table)
        dialogues = [dialogues_of(row) for row in table.select(DIALOGUE_COLUMNS).take(pa.array(rows)).to_pylist()]
        sides = score_dialogues(self._engine, dialogues)
        return _with_sides(table, rows, sides, names=(REWARD_CHOSEN, REWARD_REJECTED), stage="reward")


def _with_sides(
    table: pa.Table,
    rows: npt.NDArray[np.int64],
    sides: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    *,
    names: Sequence[str],
    stage: str,
) -> pa.Table:
    finite = np.isfinite(sides[0]) & np.isfinite(sides[1])
    for name, values in zip(names, sides, strict=True):
        column = spread(values[finite].tolist(), rows[finite].tolist(), num_rows=table.num_rows, of_type=pa.float64())
        table = set_column(table, name, column)
    reason = "non_finite_reward" if stage == "reward" else "non_finite_logp"
    return drop_rows(table, dict.fromkeys(rows[~finite].tolist(), reason), stage=stage)
