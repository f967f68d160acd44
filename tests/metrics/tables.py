"""Tables of scored columns for tests."""

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.metrics import METRICS

OF_ONE_REWARD = [name for name in METRICS if name != "divergence"]


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


def agreeing_table(num_rows: int, *, seed: int = 0, **columns) -> pa.Table:
    """Scored rows whose policy, reference and reward favour chosen more often than not, and each other a little."""
    rng = np.random.default_rng([seed, 1])
    quality = rng.normal(0.4, 1.0, num_rows)
    tokens = rng.integers(20, 400, (2, num_rows))
    mean_logps = rng.normal(-1.5, 0.4, (2, num_rows)) + np.stack([0.2 * quality, -0.2 * quality])
    references = mean_logps - rng.normal(0.1, 0.3, (2, num_rows)) * [[1.0], [-1.0]]
    return scored_table(num_rows, seed=seed, **{
        schema.REWARD_CHOSEN: quality + rng.normal(0.5, 1.0, num_rows),
        schema.REWARD_REJECTED: -quality + rng.normal(0.0, 1.0, num_rows),
        schema.POLICY_LOGP_CHOSEN: mean_logps[0] * tokens[0],
        schema.POLICY_LOGP_REJECTED: mean_logps[1] * tokens[1],
        schema.REFERENCE_LOGP_CHOSEN: references[0] * tokens[0],
        schema.REFERENCE_LOGP_REJECTED: references[1] * tokens[1],
        schema.NUM_TOKENS_CHOSEN: tokens[0],
        schema.NUM_TOKENS_REJECTED: tokens[1],
    } | columns)  # fmt: skip


def on_policy_table(num_rows: int, *, seed: int = 0) -> pa.Table:
    """Rows as on-policy sampling gives them: five candidates a prompt, of which chosen is the best and rejected the
    worst by a reward with heavy tails and many ties; log-probs of very unlike lengths.
    """
    rng = np.random.default_rng([seed, 2])
    rewards = np.round(rng.standard_t(3, (num_rows, 5)) * 0.05 + 0.15, 3)
    tokens = np.clip(rng.lognormal(5.3, 0.7, (2, num_rows)), 1, 2000).astype(np.int64)
    logps = -rng.gamma(2.0, 0.25, (2, num_rows)) * tokens
    return scored_table(num_rows, seed=seed, **{
        schema.REWARD_CHOSEN: rewards.max(axis=1),
        schema.REWARD_REJECTED: rewards.min(axis=1),
        schema.REWARDS_ALL: list(rewards),
        schema.POLICY_LOGP_CHOSEN: logps[0],
        schema.POLICY_LOGP_REJECTED: logps[1],
        schema.NUM_TOKENS_CHOSEN: tokens[0],
        schema.NUM_TOKENS_REJECTED: tokens[1],
    })  # fmt: skip
