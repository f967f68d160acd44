"""What a source format turns a row into: a pair, or a reason to drop it.

Owns the `Format` that every module of this folder builds. A malformed row is never an error: deep in a conversion it
raises `DropRow`, which `Format.convert` hands back as a `Drop`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipeline.drops import Drop, DropRow, Reason, tell_row_fault
from pipeline.errors import is_foreign
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
