"""The stage of scoring that gives each answer of a pair its reward, or its lead, whatever the back end."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.config import names_of, reward_key
from pipeline.data.place import Place
from pipeline.drops import Reason
from pipeline.rewards.backend import Backend, Dialogue, Scorer
from pipeline.steps.rows import TRANSIENT_PREFIX, add_scores, kept_rows, token_ids
from pipeline.steps.work import Apply, Stage

_OWN: Final = {
    *schema.scored_schema(pair=schema.pair_schema(template_kwargs=True)).names,
    *(field.name for field in schema.SUBSET_FIELDS),
}


def reward_stage(member: str, reward: Backend[Any], cache: Place | None = None) -> Stage:
    """The stage of a member that alignpot computes. cache: where answers that cost money are kept."""
    build = partial(_build, member, reward, cache)
    return Stage(name="reward", build=build, model=reward.section, key=reward_key(member), env=reward.env())


def id_columns(member: str = "") -> tuple[str, str]:
    """Columns of the token ids that a member reads, of the chosen and the rejected dialogue."""
    chosen, rejected = schema.reward_columns(member)
    return f"{TRANSIENT_PREFIX}{chosen}_ids", f"{TRANSIENT_PREFIX}{rejected}_ids"


def _build(member: str, reward: Backend[Any], cache: Place | None) -> Apply:
    names = names_of(member, reward.section)
    columns_of = schema.lead_columns if reward.compares else schema.reward_columns
    return RewardPairs(
        reward.scorer(cache), reads_ids=reward.reads_ids, member=member, columns=[*map(columns_of, names)]
    )


class RewardPairs:
    """Adds the rewards of both answers by one member, or their leads, float64; `columns` are two for each head."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        reads_ids: bool,
        member: str = "",
        columns: Sequence[tuple[str, str]] = (schema.reward_columns(),),
    ) -> None:
        self._scorer, self._columns = scorer, columns
        self._dialogues = partial(dialogues_as_ids, member=member) if reads_ids else dialogues_as_turns

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the kept rows. Rows without two rewards are dropped. Raises as the scorer."""
        scores = self._scorer.score(self._dialogues(table, kept_rows(table)))
        return add_scores(table, scores, self._columns, "reward", Reason.NON_FINITE_REWARD)

    def close(self) -> None:
        """Free what the scorer holds."""
        self._scorer.close()


def dialogues_as_ids(table: pa.Table, rows: npt.NDArray[np.int64], member: str = "") -> list[list[Dialogue]]:
    """The chosen and the rejected dialogue of each of the rows, as the token ids that a member reads."""
    ids = (token_ids(table, rows, name) for name in id_columns(member))
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
    own = {*_OWN} | {name for judged in schema.judged_rewards(scored.names) for name in schema.lead_columns(judged)}
    if schema.REWARD_CHOSEN not in scored.names:
        own |= {column for name in schema.named_rewards(scored.names) for column in schema.reward_columns(name)}
    return [name for name in scored.names if name not in own and not name.startswith(TRANSIENT_PREFIX)]
