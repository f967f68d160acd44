"""Tables of scored columns for tests."""

import numpy as np
import pyarrow as pa

from pipeline import schema


def scored_table(num_rows: int = 0, *, seed: int = 0, **columns) -> pa.Table:
    """Random scored rows with unlike ids; `columns` replaces some, and None stands for a model that was not run."""
    given = [len(values) for values in columns.values() if values is not None]
    num_rows = given[0] if given else num_rows
    rng = np.random.default_rng(seed)
    data = {
        schema.ID: [f"{value:012x}" for value in rng.permutation(num_rows)],
        schema.REWARD_CHOSEN: rng.normal(1.0, 2.0, num_rows),
        schema.REWARD_REJECTED: rng.normal(0.0, 2.0, num_rows),
        schema.REWARDS_ALL: list(rng.normal(0.0, 2.0, (num_rows, 5))),
        schema.POLICY_LOGP_CHOSEN: -rng.gamma(4.0, 40.0, num_rows),
        schema.POLICY_LOGP_REJECTED: -rng.gamma(4.0, 40.0, num_rows),
        schema.REFERENCE_LOGP_CHOSEN: -rng.gamma(4.0, 40.0, num_rows),
        schema.REFERENCE_LOGP_REJECTED: -rng.gamma(4.0, 40.0, num_rows),
        schema.NUM_TOKENS_CHOSEN: rng.integers(1, 400, num_rows),
        schema.NUM_TOKENS_REJECTED: rng.integers(1, 400, num_rows),
    }
    types = {field.name: field.type for field in (*schema.PAIR_SCHEMA, *schema.SCORE_FIELDS)}
    data |= {name: [None] * num_rows if values is None else values for name, values in columns.items()}
    return pa.table({name: pa.array(values, types[name]) for name, values in data.items()})


def swapped(table: pa.Table) -> pa.Table:
    """The same pairs with chosen and rejected exchanged."""

    def other(name: str) -> str:
        if name.endswith("_chosen"):
            return name.removesuffix("chosen") + "rejected"
        return name.removesuffix("rejected") + "chosen" if name.endswith("_rejected") else name

    return table.rename_columns([other(name) for name in table.column_names]).select(table.column_names)
