"""How a policy's answers to the held-out prompts compare with another's, usually those of round 0.

The unit is the prompt. Its number is the mean reward of its responses; for the win rate it is the share of won pairs
among all pairs of a response of each policy, a tie counting half. Means and differences have 95 % intervals by
Student's t over prompts. The difference is taken prompt by prompt: its interval is far narrower than two separate ones.
The win rate lies between 0 and 1, often near an end, and has Wilson's interval. Nothing is random: the same answers
give the same table. The intervals say what other prompts of the same kind would give, not what other sampling seeds or
another training would.

Rewards compare policies under the reward model that judged both, and no further.
"""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema as s
from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.intervals import interval, share_interval
from pipeline.shown import quoted

_COLUMNS = (s.ID, s.RESPONSE_REWARDS, s.RESPONSE_TOKENS, s.FINISH_REASONS)


def compare_policies(answers: pa.Table, baseline: pa.Table) -> dict[str, Any]:
    """Figures of `answers`, and how they differ from `baseline`, as JSON-ready values.

    Both tables have the columns id, all_rm_scores, num_tokens_responses and finish_reasons of ANNOTATED_SCHEMA, and a
    row for every held-out prompt, dropped ones included. A prompt without a reward on either side is left out of both
    and counted in `num_unscored`. reward, difference and win_rate are mean, low and high; response_tokens is the mean
    of all responses; finished is the share of responses that ended by themselves.

    Raises:
        DataError: the prompts are not the same, or fewer than two have rewards on both sides.
    """
    ours, theirs = _rewards(answers), _rewards(baseline)
    if ours.keys() != theirs.keys():
        other = sorted(ours.keys() ^ theirs.keys())
        raise DataError(
            f"two policies were not measured on the same prompts: {len(other)} are on one side only, such as "
            f"{quoted(other[0])}. Measure both on all held-out prompts."
        )
    both = [id_ for id_ in sorted(ours) if ours[id_].size and theirs[id_].size]
    if len(both) < 2:
        raise DataError(f"only {len(both)} of {len(ours)} held-out prompts have rewards under both policies.")
    means, means_before = (np.array([side[id_].mean() for id_ in both]) for side in (ours, theirs))
    differences = [ours[id_][:, None] - theirs[id_][None, :] for id_ in both]
    wins = np.array([np.mean((each > 0) + 0.5 * (each == 0)) for each in differences])
    rows = answers.select([s.RESPONSE_TOKENS, s.FINISH_REASONS]).to_pylist()
    tokens = [number for row in rows for number in row[s.RESPONSE_TOKENS] or []]
    finishes = [reason for row in rows for reason in row[s.FINISH_REASONS] or []]
    return {
        "num_prompts": len(both),
        "num_unscored": len(ours) - len(both),
        "reward": asdict(interval(means)),
        "difference": asdict(interval(means - means_before)),
        "win_rate": asdict(share_interval(wins)),
        "num_responses": len(finishes),
        "response_tokens": float(np.mean(tokens)) if tokens else None,
        "finished": finishes.count("stop") / len(finishes) if finishes else None,
    }


def _rewards(table: pa.Table) -> dict[str, FloatArray]:
    """The rewards of each prompt's responses, float64 [num_rewards]; responses without a reward are left out."""
    s.require_columns(table.schema, _COLUMNS, where="an evaluation", remedy="Give annotated answers.")
    found: dict[str, FloatArray] = {}
    for row in table.select([s.ID, s.RESPONSE_REWARDS]).to_pylist():
        if row[s.ID] in found:
            raise DataError(f"the held-out prompt {quoted(row[s.ID])} stands twice among the answers of one policy.")
        rewards = [reward for reward in row[s.RESPONSE_REWARDS] or [] if reward is not None and math.isfinite(reward)]
        found[row[s.ID]] = np.array(rewards, dtype=np.float64)
    return found
