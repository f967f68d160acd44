"""Column names, Arrow types and signs of every table that alignpot reads or writes.

Margins and differences are always chosen minus rejected. Log-probabilities are natural logarithms,
summed over the response tokens, float64. Imports nothing of alignpot but its errors.
"""

import re
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
TEMPLATE_KWARGS: Final = "chat_template_kwargs"  # JSON text of a row's own arguments for the template; not in every set
CONTENT_DIGEST: Final = "content_digest"  # hex digest of what a pair says: the columns above

TOOL_CALLS: Final = "tool_calls"  # JSON text
REASONING: Final = ("reasoning_content", "reasoning", "thinking")  # names that templates have for one thing
MESSAGE_FIELDS: Final = (TOOL_CALLS, "tool_call_id", "name", *REASONING)
"""What a message may hold beside role and content. A dataset has those fields that its source has, in this order."""

RESERVED_KWARGS: Final = frozenset(
    {"conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"}
    | {"tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "strftime_now"}
)
"""Arguments of a chat template that no row and no config may give: alignpot sets them."""


def message_type(fields: Iterable[str] = ()) -> pa.DataType:
    """The type of one message with these of MESSAGE_FIELDS."""
    wanted = {*fields}
    names = ("role", "content", *(name for name in MESSAGE_FIELDS if name in wanted))
    return pa.struct([pa.field(name, pa.string()) for name in names])


def messages_type(fields: Iterable[str] = ()) -> pa.DataType:
    """The type of a column of message lists."""
    return pa.list_(message_type(fields))


MESSAGE: Final = message_type()
MESSAGES: Final = messages_type()

# --- scored: raw per-side quantities, from which every objective is computed ----------------------
REWARD_CHOSEN: Final = "reward_chosen"
REWARD_REJECTED: Final = "reward_rejected"
REWARDS_ALL: Final = "rewards_all"  # rewards of all K candidates the pair was chosen from
POLICY_LOGP_CHOSEN: Final = "policy_logp_chosen"
POLICY_LOGP_REJECTED: Final = "policy_logp_rejected"
REFERENCE_LOGP_CHOSEN: Final = "reference_logp_chosen"
REFERENCE_LOGP_REJECTED: Final = "reference_logp_rejected"
LOGPS: Final = (POLICY_LOGP_CHOSEN, POLICY_LOGP_REJECTED, REFERENCE_LOGP_CHOSEN, REFERENCE_LOGP_REJECTED)
NUM_TOKENS_PROMPT: Final = "num_tokens_prompt"
NUM_TOKENS_DRAFT: Final = "num_tokens_draft"  # of a prompt that the policy wrote, the token that ended it included
NUM_TOKENS_CHOSEN: Final = "num_tokens_chosen"
NUM_TOKENS_REJECTED: Final = "num_tokens_rejected"
TRUNCATED: Final = "truncated"

_NAMED_REWARD: Final = re.compile(r"reward_([A-Za-z][A-Za-z0-9_]*)_(chosen|rejected)")


def reward_columns(name: str = "") -> tuple[str, str]:
    """Columns of the reward of chosen and of rejected; the only reward of a dataset has no name."""
    return (f"reward_{name}_chosen", f"reward_{name}_rejected") if name else (REWARD_CHOSEN, REWARD_REJECTED)


def named_rewards(columns: Iterable[str]) -> tuple[str, ...]:
    """The rewards that have a name and both columns among these, in their order."""
    there = [*columns]
    found = (_NAMED_REWARD.fullmatch(column) for column in there)
    names = dict.fromkeys(match[1] for match in found if match)
    return tuple(name for name in names if {*reward_columns(name)} <= {*there})


def lead_columns(name: str = "") -> tuple[str, str]:
    """Columns of a reward by a pairwise judge: how far chosen leads where it stands first, -1 to 1; rejected likewise.

    Only such a reward has them. Its reward_columns are null.
    """
    return (f"lead_{name}_chosen", f"lead_{name}_rejected") if name else ("lead_chosen", "lead_rejected")


def judged_rewards(columns: Iterable[str]) -> tuple[str, ...]:
    """The rewards that have both leads among these columns; "" is the only reward of a dataset."""
    there = [*columns]
    return tuple(name for name in ("", *named_rewards(there)) if {*lead_columns(name)} <= {*there})


# --- outcome of a row ------------------------------------------------------------------------------
STATUS: Final = "status"
KEPT: Final = "kept"
DROPPED: Final = "dropped"
DROP_STAGE: Final = "drop_stage"  # stages and reasons: see pipeline.drops
DROP_REASON: Final = "drop_reason"
SOURCE_FILE: Final = "source_file"  # relative to source.path
SOURCE_ROW: Final = "source_row"  # 0-based row in that file
SOURCE_NAME: Final = "source_name"  # which one of several sources; where there is one only, there is no such column
SCORING: Final = "scoring_outcome"  # of a lazy run: which rows policy and reference scored, one of SCORINGS
SKIPPED: Final = "skipped"  # not scored: the row could not be selected
SCORED: Final = "scored"
SAMPLED: Final = "sampled"  # scored, and one of the rows that statistics come from
PASSED_OVER: Final = "passed_over"  # not scored: the proxy ranked the row too low, which may be wrong
SCORINGS: Final = (SKIPPED, SCORED, SAMPLED, PASSED_OVER)
BOUND: Final = "potential_bound"  # of a skipped row: its score is at most this
READ_FROM: Final = b"alignpot.read_from"  # in the metadata of a shard's schema: digest of the file it was read from

# --- subset ----------------------------------------------------------------------------------------
MARGIN_EXPLICIT: Final = "margin_explicit"
MARGIN_IMPLICIT: Final = "margin_implicit"
POTENTIAL: Final = "potential"  # the score that was ranked, by any metric

# --- self-play: prompts, the K responses to each, their rewards, the pairs made of them ----------------
PARENT_ID: Final = "parent_id"  # id of the prompt that this one was made from; null for a given one
STRATEGY: Final = "strategy"  # how it was made; "seed" for a given one
ROUND: Final = "round"  # the round it was made in, from 1 on; 0 for a given one
RESPONSES: Final = "all_generated_responses"  # texts, K of them; "" for an empty answer
RESPONSE_REWARDS: Final = "all_rm_scores"  # K rewards; null where a response has none
FINISH_REASONS: Final = "finish_reasons"  # "stop" or "length", K of them
RESPONSE_TOKENS: Final = "num_tokens_responses"  # tokens generated, K of them
PROMPT_ID: Final = "prompt_id"  # of a pair: id of its prompt

PAIR_SCHEMA: Final = pa.schema({
    ID: pa.string(),
    PROMPT: MESSAGES,
    CHOSEN: MESSAGES,
    REJECTED: MESSAGES,
    TOOLS: pa.string(),
    CONTENT_DIGEST: pa.string(),
})  # fmt: skip


def reward_fields(rewards: Iterable[str] = ("",)) -> tuple[pa.Field, ...]:
    """The columns of rewards of these names, and that of all candidates."""
    names = [column for name in rewards for column in reward_columns(name)]
    return (*(pa.field(name, pa.float64()) for name in names), pa.field(REWARDS_ALL, pa.list_(pa.float64())))


def lead_fields(rewards: Iterable[str] = ("",)) -> tuple[pa.Field, ...]:
    """The columns of leads of rewards of these names."""
    return tuple(pa.field(column, pa.float64()) for name in rewards for column in lead_columns(name))


SCORE_FIELDS: Final = (
    *reward_fields(),
    pa.field(POLICY_LOGP_CHOSEN, pa.float64()),
    pa.field(POLICY_LOGP_REJECTED, pa.float64()),
    pa.field(REFERENCE_LOGP_CHOSEN, pa.float64()),
    pa.field(REFERENCE_LOGP_REJECTED, pa.float64()),
    pa.field(NUM_TOKENS_PROMPT, pa.int64()),
    pa.field(NUM_TOKENS_CHOSEN, pa.int64()),
    pa.field(NUM_TOKENS_REJECTED, pa.int64()),
    pa.field(TRUNCATED, pa.bool_()),
)

STATUS_FIELDS: Final = tuple(pa.field(name, pa.string()) for name in (STATUS, DROP_STAGE, DROP_REASON))

OUTCOME_FIELDS: Final = (*STATUS_FIELDS, pa.field(SOURCE_FILE, pa.string()), pa.field(SOURCE_ROW, pa.int64()))

LAZY_FIELDS: Final = (pa.field(SCORING, pa.string()), pa.field(BOUND, pa.float64()))

PROVENANCE_FIELDS: Final = (
    pa.field(PARENT_ID, pa.string()),
    pa.field(STRATEGY, pa.string()),
    pa.field(ROUND, pa.int64()),
)

_PROMPT_FIELDS: Final = (pa.field(ID, pa.string()), pa.field(PROMPT, MESSAGES), *PROVENANCE_FIELDS)
_CANDIDATE_FIELDS: Final = (
    pa.field(RESPONSES, pa.list_(pa.string())),
    pa.field(FINISH_REASONS, pa.list_(pa.string())),
    pa.field(RESPONSE_TOKENS, pa.list_(pa.int64())),
    pa.field(NUM_TOKENS_PROMPT, pa.int64()),
)


def response_rewards(name: str = "") -> str:
    """Column of the rewards of the K responses; the only reward has no name."""
    return f"{RESPONSE_REWARDS}_{name}" if name else RESPONSE_REWARDS


# A row is a prompt, given or made, or a draft of one; then a prompt with its responses; then with their rewards; then a
# pair of them, or a dropped prompt that gave none. Rows that were dropped keep what they had.
PROMPT_SCHEMA: Final = pa.schema([*_PROMPT_FIELDS, *STATUS_FIELDS])
DRAFT_SCHEMA: Final = pa.schema([*_PROMPT_FIELDS, pa.field(NUM_TOKENS_DRAFT, pa.int64()), *STATUS_FIELDS])
CANDIDATE_SCHEMA: Final = pa.schema([*_PROMPT_FIELDS, *_CANDIDATE_FIELDS, *STATUS_FIELDS])


def annotated_schema(rewards: Iterable[str] = ("",)) -> pa.Schema:
    """Candidates with their rewards of these names, raw."""
    fields = [pa.field(response_rewards(name), pa.list_(pa.float64())) for name in rewards]
    return pa.schema([*_PROMPT_FIELDS, *_CANDIDATE_FIELDS, *fields, *STATUS_FIELDS])


def generated_pair_schema(rewards: Iterable[str] = ("",)) -> pa.Schema:
    """Pairs with their rewards of these names, raw, and with those that they were picked by, of all candidates."""
    prompt_id = pa.field(PROMPT_ID, pa.string())
    return pa.schema([*PAIR_SCHEMA, *reward_fields(rewards), prompt_id, *PROVENANCE_FIELDS, *STATUS_FIELDS])


def rewarded_fields(rewards: Iterable[str] = ("",)) -> tuple[pa.Field, ...]:
    """The responses of a prompt and their rewards of these names, raw."""
    texts = pa.field(RESPONSES, pa.list_(pa.string()))
    return (texts, *(pa.field(response_rewards(name), pa.list_(pa.float64())) for name in rewards))


ANNOTATED_SCHEMA: Final = annotated_schema()
GENERATED_PAIR_SCHEMA: Final = generated_pair_schema()

REWARDS: Final = (REWARD_CHOSEN, REWARD_REJECTED, REWARDS_ALL)
POLICY_SCORES: Final = (
    *(POLICY_LOGP_CHOSEN, POLICY_LOGP_REJECTED, TRUNCATED),
    *(NUM_TOKENS_PROMPT, NUM_TOKENS_CHOSEN, NUM_TOKENS_REJECTED),
)
REFERENCE_SCORES: Final = (REFERENCE_LOGP_CHOSEN, REFERENCE_LOGP_REJECTED)

TRAIN: Final = "train"
"""The split of the rows of a subset that are not held out."""
SPLIT: Final = "split"
WEIGHT: Final = "weight"
"""How much a pair counts in training: in a subset made with select.weights."""
SUBSET_FIELDS: Final = tuple(pa.field(name, pa.float64()) for name in (MARGIN_EXPLICIT, MARGIN_IMPLICIT, POTENTIAL))


def pair_schema(message_fields: Iterable[str] = (), *, template_kwargs: bool = False) -> pa.Schema:
    """The columns of a pair whose messages have these of MESSAGE_FIELDS."""
    pair = PAIR_SCHEMA
    for name in (PROMPT, CHOSEN, REJECTED):
        pair = pair.set(pair.get_field_index(name), pa.field(name, messages_type(message_fields)))
    if template_kwargs:
        pair = pair.insert(pair.get_field_index(TOOLS) + 1, pa.field(TEMPLATE_KWARGS, pa.string()))
    return pair


def message_fields_of(kind: pa.DataType) -> tuple[str, ...] | None:
    """The MESSAGE_FIELDS of a column of message lists; None if it is no such column."""
    is_list = pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)
    fields = tuple(field.name for field in kind.value_type if field.name in MESSAGE_FIELDS) if is_list else ()
    return fields if kind.equals(messages_type(fields)) else None


def scored_schema(
    passthrough: Iterable[pa.Field] = (), pair: pa.Schema = PAIR_SCHEMA, rewards: Iterable[str] = ("",)
) -> pa.Schema:
    """The schema of a scored part: pair, raw scores, outcome, then the passthrough columns.

    Every part of a run has every column; one that does not apply holds nulls. Rewards that have names stand in columns
    of their own, raw. There is no reward_chosen beside them: selection combines them.

    Raises:
        SchemaError: a passthrough column has the name of a column of alignpot, or of a reward of a name.
    """
    rewards = [*rewards]
    scores = [field for field in SCORE_FIELDS if field not in reward_fields()]
    own = pa.schema([*pair, *reward_fields(rewards), *scores, *OUTCOME_FIELDS])
    extra = list(passthrough)
    made = (*SCORE_FIELDS, *SUBSET_FIELDS, *LAZY_FIELDS, *lead_fields(["", *rewards]))
    reserved = {*own.names} | {field.name for field in made}
    if any(rewards):
        reserved |= {column for name in named_rewards(f.name for f in extra) for column in reward_columns(name)}
    taken = sorted({f.name for f in extra} & reserved)
    if taken:
        raise SchemaError(
            f"source.passthrough names {taken}, which alignpot writes itself. "
            "Leave them out, or rename the columns in the source."
        )
    return pa.schema([*own, *extra])


def with_leads(scored: pa.Schema, rewards: Iterable[str]) -> pa.Schema:
    """The schema of a scored part with the leads of these rewards."""
    return pa.schema([*scored, *lead_fields(rewards)])


def require_columns(schema: pa.Schema, columns: Iterable[str], *, where: str, remedy: str) -> None:
    """Raise a SchemaError that names the columns of `columns` which `schema` lacks."""
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise SchemaError(f"{where} needs {missing}; the table has {schema.names}. {remedy}")
