"""Chat templates and token ids, once per tokenizer: messages in, token ids of both answers out."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.drops import Reason
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
from pipeline.stages.rows import TRANSIENT_PREFIX, drop_rows, kept_rows, set_column, spread

CHOSEN_IDS: Final = f"{TRANSIENT_PREFIX}chosen_ids"
REJECTED_IDS: Final = f"{TRANSIENT_PREFIX}rejected_ids"
CHOSEN_START: Final = f"{TRANSIENT_PREFIX}chosen_start"
REJECTED_START: Final = f"{TRANSIENT_PREFIX}rejected_start"
REWARD_CHOSEN_IDS: Final = f"{TRANSIENT_PREFIX}reward_chosen_ids"
REWARD_REJECTED_IDS: Final = f"{TRANSIENT_PREFIX}reward_rejected_ids"
REWARD_TRUNCATED: Final = f"{TRANSIENT_PREFIX}reward_truncated"

PAIR_COLUMNS = [
    CHOSEN_IDS,
    REJECTED_IDS,
    CHOSEN_START,
    REJECTED_START,
    NUM_TOKENS_PROMPT,
    NUM_TOKENS_CHOSEN,
    NUM_TOKENS_REJECTED,
    TRUNCATED,
]

DIALOGUE_COLUMNS = [REWARD_CHOSEN_IDS, REWARD_REJECTED_IDS, REWARD_TRUNCATED]

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


def pair_of(row: Mapping[str, Any]) -> TokenizedPair:
    """The tokenised pair that a row of the table stands for."""
    return TokenizedPair(
        chosen_ids=np.asarray(row[CHOSEN_IDS], np.int32),
        rejected_ids=np.asarray(row[REJECTED_IDS], np.int32),
        chosen_start=row[CHOSEN_START],
        rejected_start=row[REJECTED_START],
        num_tokens_prompt=row[NUM_TOKENS_PROMPT],
        num_tokens_chosen=row[NUM_TOKENS_CHOSEN],
        num_tokens_rejected=row[NUM_TOKENS_REJECTED],
        truncated=row[TRUNCATED],
    )


def dialogues_of(row: Mapping[str, Any]) -> TokenizedDialogues:
    """The tokenised dialogues, as the reward model reads them, that a row of the table stands for."""
    return TokenizedDialogues(
        chosen_ids=np.asarray(row[REWARD_CHOSEN_IDS], np.int32),
        rejected_ids=np.asarray(row[REWARD_REJECTED_IDS], np.int32),
        truncated=row[REWARD_TRUNCATED],
    )


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
