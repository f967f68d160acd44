"""Why rows are dropped: every stage and every reason that can stand in a dataset.

A dropped row stays in the dataset, its status `dropped`, with the stage that dropped it and the reason. Code deep in
the work on one row raises `DropRow`; code that works on a table marks rows with `steps.rows.drop_rows`. A part with
another stage or reason than those listed here is never committed. The names are stable: reports and tests count them.

Rows that are left out because the config says so do not count against `run.max_dropped`; see `share_of_faults`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, Self

from pipeline.errors import IntegrityError
from pipeline.schema import DROP_REASON, DROP_STAGE, DROPPED, STATUS
from pipeline.shown import shown

StageName = Literal[
    "source", "tokenise", "reward", "policy", "reference", "generate", "annotate", "pair", "evolve", "filter"
]
"""Where a row can be dropped: while it is read, in a stage of a step, or by the filters of prompts."""

_TOKENS: Final = "tokenise generate annotate"
_MODELS: Final = "reward policy reference annotate"
_ANY_STAGE: Final = "tokenise reward policy reference generate annotate pair evolve"

_log = logging.getLogger(__name__)
_told: Final[set[tuple[str, str]]] = set()


class Reason(StrEnum):
    """Why a row was dropped: the reason's name, the stages that give it, and what it means.

    by_rule: a rule of the config leaves the row out; nothing is wrong with it.
    """

    stages: tuple[str, ...]
    meaning: str
    by_rule: bool

    def __new__(cls, value: str, stages: str = "", meaning: str = "", by_rule: bool = False) -> Self:  # noqa: FBT001, FBT002
        """stages: their names with spaces between."""
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.stages = tuple(stages.split())
        reason.meaning = meaning
        reason.by_rule = by_rule
        return reason

    # --- of a source's rows
    INVALID_JSON = (
        "invalid_json",
        "source",
        "a line that is no JSON object, or a row of CSV that does not fit the head",
    )
    UNDECODABLE_TEXT = "undecodable_text", "source pair", "bytes that are not UTF-8, or lone surrogates"
    NULL_FIELD = "null_field", "source", "a prompt, response, role or content is null or absent"
    WRONG_TYPE = "wrong_type", "source", "text instead of messages, a number instead of text, and so on"
    WRONG_ROLES = "wrong_roles", "source", "an unknown role, or turns that are not a prompt followed by answers"
    NOT_A_TRANSCRIPT = "not_a_transcript", "source", "text without Human and Assistant turns"
    UNSUPPORTED_CONTENT = "unsupported_content", "source", "images, audio, video; in prompts of self-play also tools"
    INVALID_TOOLS = "invalid_tools", "source", "tools that are not a JSON list"
    INVALID_TOOL_CALLS = "invalid_tool_calls", "source", "tool calls that are not a JSON list of objects"
    INVALID_TEMPLATE_KWARGS = "invalid_template_kwargs", "source", "no JSON object, or a name that is reserved"
    LATE_FIELD = (
        "late_field",
        "source",
        "a field of messages that the first rows lack; write Parquet, or put such a row first",
    )
    EMPTY_PROMPT = "empty_prompt", "source generate evolve filter", "no prompt, or one without a word"
    EMPTY_RESPONSE = "empty_response", "source pair", "a response without text; in `pair`, most of them"
    IDENTICAL_RESPONSES = "identical_responses", "source pair", "chosen equals rejected; in `pair`, most are equal"
    TOO_FEW_CANDIDATES = "too_few_candidates", "source pair", "fewer than two responses to pick a pair from"
    CANDIDATE_COUNT_MISMATCH = "candidate_count_mismatch", "source pair", "not one score to each candidate"
    TIED_REWARDS = "tied_rewards", "source pair", "the candidates score the same, so none of them is the better one"
    TIE = "tie", "source", "the label calls both answers equally good, or their scores are the same"
    UNKNOWN_LABEL = "unknown_label", "source", "a label that names neither of the two answers, or is not true or false"
    LONE_ANSWER = "lone_answer", "source", "no other row of the file has an answer to pair this one with"
    ANSWER_OF_A_PAIR = "answer_of_a_pair", "source", "another row holds the pair, with this answer or without", True
    SCORE_NOT_FOUND = "score_not_found", "source", "no candidate equals the chosen or the rejected text"
    AMBIGUOUS_SCORE = "ambiguous_score", "source", "equal candidates have different scores"
    NULL_SCORE = "null_score", "source pair", "a score is missing"
    NON_FINITE_SCORE = "non_finite_score", "source pair", "a score is NaN or infinite"
    POSITIVE_LOGP = "positive_logp", "source", "a sum of log-probabilities above 0; the sign is likely wrong"
    INVALID_TOKEN_COUNT = "invalid_token_count", "source", "a number of tokens that is not a whole number above 0"
    NULL_ID = "null_id", "source", "the id column is null"
    ID_TYPE = "id_type", "source", "an id that is neither text nor a whole number"
    PASSTHROUGH_TYPE = (
        "passthrough_type",
        "source",
        "a value of passthrough or where is not of the column's type",
    )
    DROPPED_BEFORE = "dropped_before", "source", "dropped already in the dataset that is read as a source"
    ROW_ERROR = "row_error", "source", "the conversion failed with an error of Python's, which the log names"
    FILTERED = "filtered", "source", "source.where does not hold for it", True
    DUPLICATE_PROMPT = "duplicate_prompt", "source", "another row has the same prompt"
    BEYOND_LIMIT = "beyond_limit", "source", "beyond the limit of prompts, or the limit or weight of its source", True
    # --- of templates and tokens
    TEMPLATE_ERROR = "template_error", _TOKENS, "the chat template refuses the turns or fails on them"
    TEMPLATE_TIMEOUT = "template_timeout", _TOKENS, "the chat template takes too long"
    TEMPLATE_OUTPUT_TOO_LONG = "template_output_too_long", _TOKENS, "the template writes far more than it was given"
    TOKENIZER_ERROR = "tokenizer_error", _TOKENS, "the tokenizer fails on the text"
    PROMPT_TOO_LONG = "prompt_too_long", "tokenise generate", "the prompt leaves no room for a response"
    EMPTY_AFTER_TRUNCATION = "empty_after_truncation", "tokenise annotate", "no token of a response is left to score"
    IDENTICAL_IN_TEMPLATE = "identical_in_template", "tokenise", "the template leaves out what sets the responses apart"
    SEVERAL_TURNS = "several_turns", "tokenise", "more than one text a side, which tokens.template: none cannot join"
    IDENTICAL_AFTER_TRUNCATION = "identical_after_truncation", "tokenise", "both responses are cut to the same tokens"
    BOUNDARY_MISMATCH = "boundary_mismatch", "tokenise", "prompt and response share a token (tokens.preset: paper)"
    # --- of models
    DOES_NOT_FIT_MEMORY = "does_not_fit_memory", _MODELS, "memory has no room for this one sequence"
    LONGER_THAN_MODEL = "longer_than_model", _MODELS, "more tokens than the model has positions"
    NON_FINITE_LOGP = "non_finite_logp", "policy reference", "the log-probability is NaN or infinite"
    NON_FINITE_REWARD = "non_finite_reward", "reward annotate", "the reward is NaN or infinite"
    NO_REWARD = "no_reward", "reward annotate", "the reward function gives it no number (None)"
    REWARD_ERROR = "reward_error", "reward annotate", "the reward function or service fails on it; the log says how"
    NO_VERDICT = "no_verdict", "reward annotate", "no verdict can be read in what the judge says of it"
    REWARD_TIMEOUT = "reward_timeout", "reward annotate", "the reward function takes longer than reward.timeout_s"
    STAGE_ERROR = "stage_error", _ANY_STAGE, "the stage failed on this row and works on others; the log names the error"
    KILLED_WORKER = "killed_worker", _ANY_STAGE, "three workers in a row died on this row"
    # --- of self-play
    EMPTY_RESPONSES = "empty_responses", "generate annotate", "every response is empty"
    UNFINISHED_RESPONSE = "unfinished_response", "pair evolve", "cut at the token limit; in `pair`, most responses"
    MARGIN_OUT_OF_BOUNDS = "margin_out_of_bounds", "pair", "the rewards of the pair differ too little or too much"
    LENGTH_OUT_OF_BOUNDS = "length_out_of_bounds", "pair", "responses too short, or too different in length"
    REQUEST_TOO_LONG = "request_too_long", "evolve", "the prompt and its instructions do not fit the model together"
    NO_LAST_USER_TURN = "no_last_user_turn", "evolve", "the prompt to rewrite does not end with a user turn"
    CONTAMINATED = "contaminated", "source filter", "it shares a run of words with a benchmark", True
    NEAR_HELD_OUT = "near_held_out", "filter", "nearly the same words as a held-out prompt"
    LENGTH_RATIO = "length_ratio", "filter", "many times as long or as short as its parent"
    REFUSAL = "refusal", "filter", "the model declined to write a prompt"
    META_PHRASE = "meta_phrase", "filter", 'it speaks of "the rewritten prompt" and the like, and its parent does not'
    OTHER_LANGUAGE = "other_language", "filter", "in another script or language than its parent"
    REPEATS_PARENT = "repeats_parent", "filter", "nearly the same words as its parent"
    NEAR_DUPLICATE = "near_duplicate", "filter", "nearly the same words as another prompt"


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a row was dropped, and where."""

    reason: Reason
    stage: StageName = "source"

    @property
    def columns(self) -> dict[str, str]:
        """The outcome of the row, by column."""
        return {STATUS: DROPPED, DROP_STAGE: self.stage, DROP_REASON: str(self.reason)}


class DropRow(Exception):  # noqa: N818 - control flow, never seen by a user
    """Ends the work on one row."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def share_of_faults(dropped: Mapping[str, int], num_rows: int) -> float:
    """Dropped rows as a share of all rows, without those that a rule leaves out; 0 if there are none.

    dropped: number of rows for each reason, with or without the stage before it.
    """
    by_rule = sum(n for reason, n in dropped.items() if Reason(reason.split()[-1]).by_rule)
    return (sum(dropped.values()) - by_rule) / max(1, num_rows - by_rule)


def check_drop(stage: str | None, reason: str | None, where: str) -> None:
    """Raise an IntegrityError unless stage and reason of a dropped row are listed here."""
    if reason not in set(Reason) or stage not in Reason(reason).stages:
        raise IntegrityError(
            f"{where}: a row was dropped with stage {stage} and reason {reason}, which pipeline.drops does not list."
        )


def tell_row_fault(error: BaseException, *, where: str, row: str, words: str = "") -> None:
    """Log the class of an error on a row and the row's id or place, never its text; once per class and `where`.

    words: what is no text of the row, such as a template's own words.
    """
    name = type(error).__name__
    if (where, name) not in _told:
        _told.add((where, name))
        said = f" ({shown(words)})" if words else ""
        _log.warning("%s: %s%s on row %s, which is dropped, as is every other like it", where, name, said, shown(row))
