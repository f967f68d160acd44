"""Chat templates and token ids, once per tokenizer: messages in, token ids of both answers out."""

from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.drops import Reason
from pipeline.models.packing import Completion, Group, Int32Array
from pipeline.models.prompts import DialogueTokenizer, PairTokenizer, TokenizedDialogues, TokenizedPair
from pipeline.schema import (
    CHOSEN,
    ID,
    NUM_TOKENS_CHOSEN,
    NUM_TOKENS_PROMPT,
    NUM_TOKENS_REJECTED,
    PROMPT,
    REJECTED,
    TOOLS,
    TRUNCATED,
)
from pipeline.steps.rows import TRANSIENT_PREFIX, drop_rows, kept_rows, set_column, spread

CHOSEN_IDS: Final = f"{TRANSIENT_PREFIX}chosen_ids"
REJECTED_IDS: Final = f"{TRANSIENT_PREFIX}rejected_ids"
CHOSEN_START: Final = f"{TRANSIENT_PREFIX}chosen_start"
REJECTED_START: Final = f"{TRANSIENT_PREFIX}rejected_start"
REWARD_CHOSEN_IDS: Final = f"{TRANSIENT_PREFIX}reward_chosen_ids"
REWARD_REJECTED_IDS: Final = f"{TRANSIENT_PREFIX}reward_rejected_ids"
REWARD_TRUNCATED: Final = f"{TRANSIENT_PREFIX}reward_truncated"

_IDS = pa.list_(pa.int32())

Columns = dict[str, tuple[pa.DataType, list[Any]]]
"""Type and values of new columns, for the rows that have them."""


class TokenisePairs:
    """Adds the token ids that policy and reference share, the token counts and the truncation flag."""

    def __init__(self, tokenizer: PairTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, table: pa.Table) -> pa.Table:
        """Tokenise the kept rows; drop those the template or the length limit makes unusable."""
        kept, table = _tokenise(table, self._tokenizer)
        pairs: dict[int, TokenizedPair] = kept
        columns: Columns = {
            CHOSEN_IDS: (_IDS, [p.chosen_ids for p in pairs.values()]),
            REJECTED_IDS: (_IDS, [p.rejected_ids for p in pairs.values()]),
            CHOSEN_START: (pa.int64(), [p.chosen_start for p in pairs.values()]),
            REJECTED_START: (pa.int64(), [p.rejected_start for p in pairs.values()]),
            NUM_TOKENS_PROMPT: (pa.int64(), [p.num_tokens_prompt for p in pairs.values()]),
            NUM_TOKENS_CHOSEN: (pa.int64(), [p.num_tokens_chosen for p in pairs.values()]),
            NUM_TOKENS_REJECTED: (pa.int64(), [p.num_tokens_rejected for p in pairs.values()]),
            TRUNCATED: (pa.bool_(), [p.truncated for p in pairs.values()]),
        }
        return _with_columns(table, list(pairs), columns)


class TokeniseDialogues:
    """Adds the token ids that the reward model reads: each dialogue whole, by the reward model's own template."""

    def __init__(self, tokenizer: DialogueTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, table: pa.Table) -> pa.Table:
        """Tokenise both dialogues of the kept rows."""
        kept, table = _tokenise(table, self._tokenizer)
        dialogues: dict[int, TokenizedDialogues] = kept
        columns: Columns = {
            REWARD_CHOSEN_IDS: (_IDS, [d.chosen_ids for d in dialogues.values()]),
            REWARD_REJECTED_IDS: (_IDS, [d.rejected_ids for d in dialogues.values()]),
            REWARD_TRUNCATED: (pa.bool_(), [d.truncated for d in dialogues.values()]),
        }
        return _with_columns(table, list(kept), columns)


def pair_groups(table: pa.Table, rows: npt.NDArray[np.int64]) -> list[Group]:
    """A group of two for each of the rows, for causal models: the chosen sequence, then the rejected one."""
    chosen, rejected = _token_ids(table, rows, CHOSEN_IDS), _token_ids(table, rows, REJECTED_IDS)
    starts = (table.column(name).take(pa.array(rows)).to_pylist() for name in (CHOSEN_START, REJECTED_START))
    return [
        (Completion(ids=first, start=first_start), Completion(ids=second, start=second_start))
        for first, second, first_start, second_start in zip(chosen, rejected, *starts, strict=True)
    ]


def dialogue_groups(table: pa.Table, rows: npt.NDArray[np.int64]) -> list[Group]:
    """A group of two for each of the rows, for a reward model: the chosen dialogue, then the rejected one."""
    chosen, rejected = _token_ids(table, rows, REWARD_CHOSEN_IDS), _token_ids(table, rows, REWARD_REJECTED_IDS)
    return [
        (Completion(ids=first, start=0), Completion(ids=second, start=0))
        for first, second in zip(chosen, rejected, strict=True)
    ]


def _token_ids(table: pa.Table, rows: npt.NDArray[np.int64], name: str) -> list[Int32Array]:
    """Token ids of some rows, as views of one array."""
    column = table.column(name).take(pa.array(rows)).combine_chunks()
    values = column.values.to_numpy()
    return [values[begin:end] for begin, end in pairwise(column.offsets.to_pylist())]


def _tokenise(table: pa.Table, tokenizer: PairTokenizer | DialogueTokenizer) -> tuple[dict[int, Any], pa.Table]:
    rows = kept_rows(table)
    pairs = table.select([ID, PROMPT, CHOSEN, REJECTED, TOOLS]).take(pa.array(rows)).to_pylist()
    outcomes = {
        int(row): tokenizer.tokenize(pair[PROMPT], pair[CHOSEN], pair[REJECTED], pair[TOOLS], row=pair[ID])
        for row, pair in zip(rows, pairs, strict=True)
    }
    dropped = {row: outcome for row, outcome in outcomes.items() if isinstance(outcome, Reason)}
    kept = {row: outcome for row, outcome in outcomes.items() if row not in dropped}
    return kept, drop_rows(table, dropped, stage="tokenise")


def _with_columns(table: pa.Table, rows: list[int], columns: Columns) -> pa.Table:
    for name, (of_type, values) in columns.items():
        table = set_column(table, name, spread(values, rows, num_rows=table.num_rows, of_type=of_type))
    return table
