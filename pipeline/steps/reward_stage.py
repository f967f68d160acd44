"""The stage of scoring that gives each answer of a pair its reward, or its lead, whatever the back end."""

from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.data.place import Place
from pipeline.drops import Reason
from pipeline.rewards.backend import Backend, Dialogue, Scorer
from pipeline.steps.rows import TRANSIENT_PREFIX, add_scores, kept_rows, token_ids
from pipeline.steps.work import Apply, Stage

REWARD_CHOSEN_IDS: Final = f"{TRANSIENT_PREFIX}reward_chosen_ids"
REWARD_REJECTED_IDS: Final = f"{TRANSIENT_PREFIX}reward_rejected_ids"

_REWARDS: Final = (schema.REWARD_CHOSEN, schema.REWARD_REJECTED)
_OWN: Final = {
    *schema.scored_schema(pair=schema.pair_schema(template_kwargs=True)).names,
    *(field.name for field in schema.SUBSET_FIELDS),
}


def reward_stage(reward: Backend[Any], cache: Place | None = None) -> Stage:
    """The stage of a reward that alignpot computes. cache: where answers that cost money are kept."""
    return Stage(name="reward", build=partial(_build, reward, cache), model=reward.section, env=reward.env())


def _build(reward: Backend[Any], cache: Place | None) -> Apply:
    columns = schema.LEADS if reward.compares else _REWARDS
    return RewardPairs(reward.scorer(cache), reads_ids=reward.reads_ids, columns=columns)


class RewardPairs:
    """Adds the rewards of both answers, or their leads, float64."""

    def __init__(self, scorer: Scorer, *, reads_ids: bool, columns: tuple[str, str] = _REWARDS) -> None:
        self._scorer, self._columns = scorer, columns
        self._dialogues = dialogues_as_ids if reads_ids else dialogues_as_turns

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the kept rows. Rows without two rewards are dropped. Raises as the scorer."""
        scores = self._scorer.score(self._dialogues(table, kept_rows(table)))
        return add_scores(table, scores, self._columns, "reward", Reason.NON_FINITE_REWARD)

    def close(self) -> None:
        """Free what the scorer holds."""
        self._scorer.close()


def dialogues_as_ids(table: pa.Table, rows: npt.NDArray[np.int64]) -> list[list[Dialogue]]:
    """The chosen and the rejected dialogue of each of the rows, as token ids."""
    ids = (token_ids(table, rows, name) for name in (REWARD_CHOSEN_IDS, REWARD_REJECTED_IDS))
    names = table.column(schema.ID).take(pa.array(rows)).to_pylist()
    return [[Dialogue(id=name, ids=side) for side in sides] for name, *sides in zip(names, *ids, strict=True)]


def dialogues_as_turns(table: pa.Table, rows: npt.NDArray[np.int64]) -> list[list[Dialogue]]:
    """The same as turns, with the columns of `source.passthrough`."""
    extra = extra_columns(table.schema)
    names = (schema.ID, schema.PROMPT, schema.CHOSEN, schema.REJECTED, schema.TOOLS, schema.TEMPLATE_KWARGS, *extra)
    held = table.select([name for name in names if name in table.column_names])
    return [
        [
            Dialogue(
                id=row[schema.ID],
                prompt=row[schema.PROMPT],
                answer=row[side],
                tools=row.get(schema.TOOLS),
                template_kwargs=row.get(schema.TEMPLATE_KWARGS),
                columns={name: row[name] for name in extra},
            )
            for side in (schema.CHOSEN, schema.REJECTED)
        ]
        for row in held.take(pa.array(rows)).to_pylist()
    ]


def extra_columns(scored: pa.Schema) -> list[str]:
    """The columns of rows to score that are not alignpot's own."""
    return [name for name in scored.names if name not in _OWN and not name.startswith(TRANSIENT_PREFIX)]
