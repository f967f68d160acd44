"""How a policy's answers to the held-out prompts compare with another's, usually those of round 0.

The unit is the prompt: several responses to one are first made one number, their mean reward, and, for the win rate,
the share of all pairs of a response and one of the other policy that are won, a tie counting half. Means and
differences have 95 % intervals by Student's t over prompts, the difference that of the prompts' own differences, which
is far narrower than two separate intervals; the win rate has Wilson's, as it lies between 0 and 1, often near an end.
Neither draws anything at random: the same answers give the same table. They say what other prompts of the same kind
would give, not what other sampling seeds or another training would.

Rewards compare policies under the reward model that both were judged by, and no further.
"""

import math
from collections.abc import Mapping, Sequence
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
    """What `answers` are like and how they differ from `baseline`, as JSON-ready values.

    Both are of ANNOTATED_SCHEMA, or have its columns id, all_rm_scores, num_tokens_responses and finish_reasons, with
    every held-out prompt, dropped ones included: a prompt without a reward on either side is left out of both and
    counted in `num_unscored`. reward, difference and win_rate are mean, low and high; response_tokens the mean of all
    responses, finished the share of them that ended by themselves.

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
    wins = np.array([_share_won(ours[id_], theirs[id_]) for id_ in both])
    return {
        "num_prompts": len(both),
        "num_unscored": len(ours) - len(both),
        "reward": asdict(interval(means)),
        "difference": asdict(interval(means - means_before)),
        "win_rate": asdict(share_interval(wins)),
        **_lengths(answers),
    }


def _rewards(table: pa.Table) -> dict[str, FloatArray]:
    """The rewards of each prompt's responses, those left out that have none, float64 [num_rewards]."""
    s.require_columns(table.schema, _COLUMNS, where="an evaluation", remedy="Give annotated answers.")
    found: dict[str, FloatArray] = {}
    for row in table.select([s.ID, s.RESPONSE_REWARDS]).to_pylist():
        if row[s.ID] in found:
            raise DataError(f"the held-out prompt {quoted(row[s.ID])} stands twice among the answers of one policy.")
        rewards: Sequence[float | None] = row[s.RESPONSE_REWARDS] or []
        found[row[s.ID]] = np.array(
            [reward for reward in rewards if reward is not None and math.isfinite(reward)], dtype=np.float64
        )
    return found


def _share_won(ours: FloatArray, theirs: FloatArray) -> float:
    difference = ours[:, None] - theirs[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def _lengths(answers: pa.Table) -> Mapping[str, float | int | None]:
    rows = answers.select([s.RESPONSE_TOKENS, s.FINISH_REASONS]).to_pylist()
    tokens = [number for row in rows for number in row[s.RESPONSE_TOKENS] or []]
    reasons = [reason for row in rows for reason in row[s.FINISH_REASONS] or []]
    return {
        "num_responses": len(reasons),
        "response_tokens": float(np.mean(tokens)) if tokens else None,
        "finished": reasons.count("stop") / len(reasons) if reasons else None,
    }
