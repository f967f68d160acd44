"""What a source format turns a row into: a pair, or a reason to drop it.

Owns the stable names of the drop reasons and the `Format` that every module of this folder builds. A malformed row
is never an error: deep in a conversion it raises `DropRow`, which `Format.convert` hands back as a `Drop`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from pipeline.errors import is_foreign
from pipeline.row_faults import tell_row_fault
from pipeline.sources.columns import Columns

Turn = dict[str, str]
"""One message: `role` and `content`, nothing else."""
Row = Mapping[str, Any]

Pairs = Literal["best-worst", "sweet-spot"]
"""How a pair is picked from candidates; a pair that the row names is taken as it is with best-worst only."""
BEST_WORST: Final = "best-worst"

Layout = Literal["turns", "texts", "dialogues"]
"""How `column_pairs` reads a format: as `turns.any_pair`, as the same with a prompt that is never turns, or as full
dialogues."""


class Reason(StrEnum):
    """Why a row of the source was dropped. The names are stable: reports and tests count them."""

    INVALID_JSON = "invalid_json"  # a line that is no JSON object
    UNDECODABLE_TEXT = "undecodable_text"  # bytes that are no UTF-8, or lone surrogates
    NULL_FIELD = "null_field"  # a prompt, response, role or content that is null or absent
    WRONG_TYPE = "wrong_type"  # text where messages are wanted, a number where text is wanted, and so on
    WRONG_ROLES = "wrong_roles"  # an unknown role, or turns that are no prompt followed by answers
    NOT_A_TRANSCRIPT = "not_a_transcript"  # text without Human and Assistant turns
    UNSUPPORTED_CONTENT = "unsupported_content"  # tool calls, images, reasoning: more than text
    INVALID_TOOLS = "invalid_tools"  # tools that are no JSON list
    EMPTY_PROMPT = "empty_prompt"
    EMPTY_RESPONSE = "empty_response"
    IDENTICAL_RESPONSES = "identical_responses"
    TOO_FEW_CANDIDATES = "too_few_candidates"
    CANDIDATE_COUNT_MISMATCH = "candidate_count_mismatch"  # not one score to each candidate
    TIED_REWARDS = "tied_rewards"  # the candidates to pick from have equal scores
    SCORE_NOT_FOUND = "score_not_found"  # no candidate equals the chosen or the rejected text
    AMBIGUOUS_SCORE = "ambiguous_score"  # equal candidates bear different scores
    NULL_SCORE = "null_score"
    NON_FINITE_SCORE = "non_finite_score"
    POSITIVE_LOGP = "positive_logp"  # a sum of log-probabilities above 0: likely the sign is turned
    INVALID_TOKEN_COUNT = "invalid_token_count"  # noqa: S105 - a reason, no secret
    NULL_ID = "null_id"
    ID_TYPE = "id_type"  # an id that is neither text nor a whole number
    PASSTHROUGH_TYPE = "passthrough_type"  # a passed-through value that does not fit the column's type
    DROPPED_BEFORE = "dropped_before"  # a row of a scored dataset that was dropped when it was scored
    ROW_ERROR = "row_error"  # the conversion failed with an error of Python's; the log says which


@dataclass(frozen=True, slots=True)
class Drop:
    """The row yields no pair; says why, never what it held."""

    reason: Reason


class DropRow(Exception):  # noqa: N818 - control flow inside this folder, never seen by a user
    """Ends the conversion of one row."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def reason_of(error: Exception, row: str) -> Reason:
    """Why a row is dropped on which this was raised. `row` is its id or place, for the log.

    Raises:
        AlignpotError: the error is one of ours.
    """
    if isinstance(error, DropRow):
        return error.reason
    if not is_foreign(error):
        raise error
    tell_row_fault(error, where="source", row=row)
    return Reason.ROW_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Scores that a row's own candidates give to the pair, in the units of the source."""

    chosen: float
    rejected: float
    all: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """A pair: the turns of the prompt and of the two completions; no turn of the prompt stands in a completion."""

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]
    tools: str | None = None
    """JSON text of the tool schemas."""
    rewards: Rewards | Drop | None = None
    """From the row's candidates; a Drop says why they give none, and matters only if rewards are wanted."""
    picked: bool = False
    """The pair itself was picked by the candidates' scores; any chosen and rejected of the row are not this pair's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One known layout of a source row.

    `needs` lists what a table lacks to be read this way (empty: it can be). `claims` says whether auto detection
    should take a table that could be read this way. `reads` names every column that the builds look at.
    `build_sweet_spot` is there in formats with candidates only.
    """

    name: str
    about: str
    reads: tuple[str, ...]
    needs: Callable[[Columns], list[str]]
    claims: Callable[[Columns, Sequence[Row]], bool]
    build: Callable[[Row], PairRow]
    build_sweet_spot: Callable[[Row], PairRow] | None = None
    layout: Layout | None = None
    candidates: tuple[str, str] | None = None
    """Columns of the candidates' texts and of their scores."""

    def matches(self, columns: Columns, sample: Sequence[Row]) -> bool:
        """Whether auto detection counts this format among the candidates for a table."""
        return not self.needs(columns) and self.claims(columns, sample)

    def convert(self, row: Row, pairs: Pairs = BEST_WORST) -> PairRow | Drop:
        """The pair a row holds, or why it holds none. What a row makes fail in unforeseen ways is for `reason_of`."""
        build = self.build if pairs == BEST_WORST else self.build_sweet_spot
        if build is None:
            raise ValueError(f"format {self.name} has no candidates to pick {pairs} pairs from")
        try:
            return build(row)
        except DropRow as drop:
            return Drop(drop.reason)
