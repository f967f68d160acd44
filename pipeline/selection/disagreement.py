"""Judges who disagree: rows that hold the same prompt and the same two answers, and do not prefer the same one.

Every row is a vote for its chosen answer, rows that repeat others included. Shards of a source are read apart from each
other, so this is found among all scored rows. Labels count as the source gave them, before select.labels treats them.
"""

from typing import Final

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.metrics.columns import BoolArray, single_array
from pipeline.metrics.ids import hash_ids
from pipeline.selection.per_prompt import KeyArray, prompt_keys

VOTE_COLUMNS: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
_TOOLS_SEED: Final = 0x746F6F6C73
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)


def votes_of(table: pa.Table) -> KeyArray:
    """The votes of rows with VOTE_COLUMNS and maybe tools, uint64 [num_rows, 3].

    The first two numbers are a digest of the prompt and of both answers, whatever their order. The third is 1 for a
    vote for the answer whose digest is the lower one.
    """
    prompt, chosen, rejected = (prompt_keys(single_array(table, name)) for name in VOTE_COLUMNS)
    if schema.TOOLS in table.schema.names:
        prompt = prompt + hash_ids(single_array(table, schema.TOOLS), _TOOLS_SEED)[:, None]
    lower = (chosen[:, 0] < rejected[:, 0]) | ((chosen[:, 0] == rejected[:, 0]) & (chosen[:, 1] < rejected[:, 1]))
    # A sum is the same in both orders, modulo 2**64 as well.
    return np.column_stack([prompt * _ODD + (chosen + rejected), lower.astype(np.uint64)])


def find_disagreement(votes: KeyArray) -> tuple[BoolArray, BoolArray]:
    """Rows that some other row disagrees with; of these, rows whose side has no more votes than the other one."""
    order = np.lexsort([votes[:, 1], votes[:, 0]])
    keys, is_lower = votes[order, :2], votes[order, 2].astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)])) if len(keys) else order
    sizes = np.diff(np.append(starts, len(keys)))
    num_lower = np.repeat(np.add.reduceat(is_lower, starts) if len(keys) else is_lower, sizes)
    num_votes = np.repeat(sizes, sizes)
    num_own = np.where(is_lower == 1, num_lower, num_votes - num_lower)
    disagreed, outvoted = np.zeros((2, len(keys)), dtype=np.bool_)
    disagreed[order] = num_own < num_votes
    outvoted[order] = (num_own < num_votes) & (2 * num_own <= num_votes)
    return disagreed, outvoted
