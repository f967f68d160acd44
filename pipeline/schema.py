"""Column names, Arrow types and signs of every table that alignpot reads or writes.

Margins and differences are always chosen minus rejected. Log-probabilities are natural logarithms,
summed over the response tokens, float64. Imports nothing of alignpot but its errors.
"""

from collections.abc import Iterable
from typing import Final

import pyarrow as pa

from pipeline.errors import SchemaError

# --- pair: what every source format becomes -------------------------------------------------------
ID: Final = "id"
PROMPT: Final = "prompt"
CHOSEN: Final = "chosen"
REJECTED: Final = "rejected"
TOOLS: Final = "tools"  # JSON text of the tool schemas a prompt was written for, else null
CONTENT_DIGEST: Final = "content_digest"  # hex digest of prompt, chosen, rejected and tools

MESSAGE: Final = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
MESSAGES: Final = pa.list_(MESSAGE)

# --- scored: raw per-side quantities, from which every objective is computed ----------------------
REWARD_CHOSEN: Final = "reward_chosen"
REWARD_REJECTED: Final = "reward_rejected"
REWARDS_ALL: Final = "rewards_all"  # rewards of all K candidates the pair was chosen from
POLICY_LOGP_CHOSEN: Final = "policy_logp_chosen"
POLICY_LOGP_REJECTED: Final = "policy_logp_rejected"
REFERENCE_LOGP_CHOSEN: Final = "reference_logp_chosen"
REFERENCE_LOGP_REJECTED: Final = "reference_logp_rejected"
NUM_TOKENS_PROMPT: Final = "num_tokens_prompt"
NUM_TOKENS_CHOSEN: Final = "num_tokens_chosen"
NUM_TOKENS_REJECTED: Final = "num_tokens_rejected"
TRUNCATED: Final = "truncated"

# --- outcome of a row ------------------------------------------------------------------------------
STATUS: Final = "status"
SCORED: Final = "scored"
DROPPED: Final = "dropped"
DROP_STAGE: Final = "drop_stage"  # source | tokens | reward | policy | reference
DROP_REASON: Final = "drop_reason"
SOURCE_FILE: Final = "source_file"  # relative to source.path
SOURCE_ROW: Final = "source_row"  # 0-based row in that file

# --- subset ----------------------------------------------------------------------------------------
MARGIN_EXPLICIT: Final = "margin_explicit"
MARGIN_IMPLICIT: Final = "margin_implicit"
POTENTIAL: Final = "potential"  # the score that was ranked, whatever the metric

PAIR_SCHEMA: Final = pa.schema(
    [
        pa.field(ID, pa.string()),
        pa.field(PROMPT, MESSAGES),
        pa.field(CHOSEN, MESSAGES),
        pa.field(REJECTED, MESSAGES),
        pa.field(TOOLS, pa.string()),
        pa.field(CONTENT_DIGEST, pa.string()),
    ]
)

SCORE_FIELDS: Final = (
    pa.field(REWARD_CHOSEN, pa.float64()),
    pa.field(REWARD_REJECTED, pa.float64()),
    pa.field(REWARDS_ALL, pa.list_(pa.float64())),
    pa.field(POLICY_LOGP_CHOSEN, pa.float64()),
    pa.field(POLICY_LOGP_REJECTED, pa.float64()),
    pa.field(REFERENCE_LOGP_CHOSEN, pa.float64()),
    pa.field(REFERENCE_LOGP_REJECTED, pa.float64()),
    pa.field(NUM_TOKENS_PROMPT, pa.int64()),
    pa.field(NUM_TOKENS_CHOSEN, pa.int64()),
    pa.field(NUM_TOKENS_REJECTED, pa.int64()),
    pa.field(TRUNCATED, pa.bool_()),
)

OUTCOME_FIELDS: Final = (
    pa.field(STATUS, pa.string()),
    pa.field(DROP_STAGE, pa.string()),
    pa.field(DROP_REASON, pa.string()),
    pa.field(SOURCE_FILE, pa.string()),
    pa.field(SOURCE_ROW, pa.int64()),
)

SUBSET_FIELDS: Final = (
    pa.field(MARGIN_EXPLICIT, pa.float64()),
    pa.field(MARGIN_IMPLICIT, pa.float64()),
    pa.field(POTENTIAL, pa.float64()),
)


def scored_schema(passthrough: Iterable[pa.Field] = ()) -> pa.Schema:
    """The schema of a scored part: pair, raw scores, outcome, then the passthrough columns.

    Every part of a run has every column; one that does not apply holds nulls.

    Raises:
        SchemaError: a passthrough column bears the name of one of ours.
    """
    own = pa.schema([*PAIR_SCHEMA, *SCORE_FIELDS, *OUTCOME_FIELDS])
    extra = list(passthrough)
    taken = sorted({f.name for f in extra} & ({*own.names} | {f.name for f in SUBSET_FIELDS}))
    if taken:
        raise SchemaError(
            f"source.passthrough names {taken}, which alignpot writes itself. "
            "Leave them out, or rename the columns in the source."
        )
    return pa.schema([*own, *extra])


def require_columns(schema: pa.Schema, columns: Iterable[str], *, where: str, remedy: str) -> None:
    """Raise a SchemaError that names the columns of `columns` which `schema` lacks."""
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise SchemaError(f"{where} needs {missing}; the table has {schema.names}. {remedy}")
