"""What a format makes of a row of the source: a pair with the digest of its content, or the reason to drop the row.

A malformed row is never an error of the run. Code deep in a conversion raises `DropRow`, and `reason_of` tells the
reader why the row is dropped.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.drops import Drop, DropRow, Reason, tell_row_fault
from pipeline.errors import is_foreign
from pipeline.schema import CHOSEN, PROMPT, REJECTED, TEMPLATE_KWARGS, TOOLS
from pipeline.sources.columns import Columns, Kind, Row

Turn = dict[str, str]
"""One message: `role`, `content`, and those of schema.MESSAGE_FIELDS that it has. A message of tool calls may lack
`content`: templates tell null from empty."""

Pairs = Literal["best-worst", "sweet-spot"]
"""How a pair is picked from candidates. With best-worst, a pair that the row names is taken as it is."""
BEST_WORST: Final = "best-worst"

Layout = Literal["turns", "texts", "dialogues"]
"""How `column_pairs` reads a format: as `turns.any_pair`, as the same with a prompt that is never turns, or as full
dialogues."""

PROMPT_TEXTS: Final = ("prompt", "instruction", "question", "input")
"""Columns that may hold the prompt as text; the first present one does."""
SYSTEM_TEXTS: Final = ("system", "system_prompt")
BEGUN: Final = "initial_reason_steps"
"""Column of Step-DPO: text that both answers begin with."""
HISTORY: Final = "history"
"""Column with the rounds before the prompt (LLaMA-Factory), or with the prompt itself as text (SHP)."""

PLAIN_KEYS: Final = frozenset({"role", "content"})
MEDIA: Final = ("image", "images", "audio", "audios", "video", "videos")
"""Names of what is no text, as columns of a row and as keys of a message."""
BESIDE_PAIR: Final = (TEMPLATE_KWARGS, *MEDIA)
"""Columns that every format looks at besides its own."""

TEXT: Final = frozenset({Kind.TEXT})
TURNS: Final = frozenset({Kind.TURNS})
TURNS_OR_TEXT: Final = TURNS | TEXT

DIGEST_CHARS: Final = 32
_FIRST_UNESCAPED: Final = 32
_ESCAPES: Final = {code: json.dumps(chr(code))[1:-1].encode() for code in (*range(_FIRST_UNESCAPED), *b'"\\')}
_GROWTH: Final = np.array([len(_ESCAPES.get(code, b" ")) - 1 for code in range(256)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Scores that a row's own candidates give to the pair, in the units of the source."""

    chosen: float
    rejected: float
    all: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """A pair: the turns of the prompt and of the two completions; no turn of the prompt stands in a completion.

    A prompt that ends with an assistant turn has the beginning of both answers there, see `turns.begun`.
    """

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]
    tools: str | None = None
    """JSON text of the tool schemas."""
    template_kwargs: str | None = None
    """JSON text of the row's own arguments for the chat template."""
    rewards: Rewards | Drop | None = None
    """From the row's candidates. A Drop says why they give none; it matters only if rewards are wanted."""
    picked: bool = False
    """The pair was picked by the candidates' scores. Any chosen and rejected that the row names are not this pair's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One known layout of a source row."""

    name: str
    about: str
    wants: Mapping[str, frozenset[Kind]]
    """Columns that a table must have to be read this way, each with the kinds it may be of."""
    reads: tuple[str, ...]
    """Every column that the builds look at."""
    known_from: str = ""
    """Datasets and tools that write such rows, for the page."""
    build: Callable[[Row], PairRow]
    """The pair of a row, or DropRow."""
    build_sweet_spot: Callable[[Row], PairRow] | None = None
    """The same for sweet-spot pairs, in formats with candidates."""
    claims: Callable[[Columns, Sequence[Row]], bool] = lambda _columns, _sample: True
    """Whether auto detection should take a table that can be read this way."""
    prompt: Literal["text", "any"] | None = None
    """A prompt that is wanted besides: as text, or in any way that `turns.any_pair` finds one."""
    layout: Layout | None = None
    candidates: tuple[str, str] | None = None
    """Columns of the candidates' texts and of their scores."""
    needs: Callable[[Columns], list[str]] = lambda _columns: []
    """What a table lacks besides `wants`, where one of several columns will do."""
    rewarded_by: Callable[[Columns], tuple[str, ...]] = lambda _columns: ()
    """Columns of the table, other than `candidates`, from which the builds take the rewards of a pair."""
    together: Callable[[Mapping[int, Row | Drop]], Mapping[int, Row | Drop]] = lambda rows: rows
    """Applied to rows of one file, by their index, before `convert`: a pair may be made of several rows."""
    whole_files: bool = False
    """`together` wants all rows of a file."""

    def lacks(self, columns: Columns) -> list[str]:
        """What a table lacks to be read this way; empty if it can be."""
        unfit = [name for name, kinds in self.wants.items() if columns.get(name) not in kinds]
        missing = [f"{name} ({' or '.join(sorted(self.wants[name]))})" for name in unfit] + self.needs(columns)
        if self.prompt is None or prompt_text_column(columns):
            return missing
        if self.prompt == "text":
            return ["prompt (text)", *missing]
        has_pair = all(columns.get(side) in TURNS_OR_TEXT for side in (CHOSEN, REJECTED))
        return missing if has_pair or columns.get(PROMPT) is Kind.TURNS else ["prompt (text or turns)", *missing]

    def gives_rewards(self, columns: Columns) -> bool:
        """Whether the builds give rewards to pairs of such a table."""
        return self.candidates is not None or bool(self.rewarded_by(columns))

    def convert(self, row: Row, pairs: Pairs = BEST_WORST) -> PairRow:
        """The pair that a row holds, or DropRow. See `reason_of` for what else a row can raise."""
        build = self.build if pairs == BEST_WORST else self.build_sweet_spot
        if build is None:
            raise ValueError(f"format {self.name} has no candidates to pick {pairs} pairs from")
        return build(row)


def prompt_text_column(columns: Columns) -> str | None:
    """The column that holds the prompt as text."""
    return next((name for name in PROMPT_TEXTS if columns.get(name) is Kind.TEXT), None)


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


def content_digest(
    prompt: Sequence[Turn],
    chosen: Sequence[Turn],
    rejected: Sequence[Turn],
    tools: str | None = None,
    template_kwargs: str | None = None,
) -> str:
    """`json_digest` of a pair. Depends on nothing but the turns, the tools and the arguments of the template."""
    sides = {PROMPT: prompt, CHOSEN: chosen, REJECTED: rejected}
    more = {} if template_kwargs is None else {TEMPLATE_KWARGS: template_kwargs}
    return json_digest({**{name: _bare(side) for name, side in sides.items()}, TOOLS: tools, **more})


def prompt_digest(prompt: Sequence[Turn]) -> str:
    """`json_digest` of a prompt alone, which is its id where the source names none."""
    return json_digest({PROMPT: _bare(prompt)})


def json_digest(value: Any) -> str:
    """First 32 hex digits of the SHA-256 of a value as canonical JSON: sorted keys, no spaces, UTF-8.

    Lone surrogates, which the reader drops as undecodable_text, are hashed as they are.
    """
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARS]


def content_digests(prompt: pa.Array, chosen: pa.Array, rejected: pa.Array) -> list[str]:
    """`content_digest` of each row of three columns of messages, without tools."""
    sides = [_json_of(side) for side in (chosen, prompt, rejected)]
    texts = pc.binary_join_element_wise(
        '{"chosen":[', sides[0], '],"prompt":[', sides[1], '],"rejected":[', sides[2], '],"tools":null}', ""
    )
    return [hashlib.sha256(text).hexdigest()[:DIGEST_CHARS] for text in texts.cast(pa.binary()).to_pylist()]


def _bare(turns: Sequence[Turn]) -> list[Turn]:
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def _json_of(messages: pa.Array) -> pa.Array:
    """The turns of each row as JSON objects between commas."""
    role, content = messages.flatten().flatten()
    turns = pc.binary_join_element_wise('{"content":"', _escaped(content), '","role":"', role, '"}', "")
    return pc.binary_join(pa.ListArray.from_arrays(messages.offsets, turns), ",")


def _escaped(texts: pa.Array) -> pa.Array:
    """The texts as they stand in JSON between the quotes; `texts` must have no nulls."""
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    raw = (data or pa.py_buffer(b""))[starts[0] : starts[-1]].to_pybytes()
    codes = np.frombuffer(raw, np.uint8)
    places = np.flatnonzero((codes < _FIRST_UNESCAPED) | (codes == ord('"')) | (codes == ord("\\")))
    grown = np.concatenate([[0], np.cumsum(_GROWTH[codes[places]])])
    starts = starts - starts[0]
    starts = starts + grown[np.searchsorted(places, starts)]
    for code in sorted({*codes[places].tolist()}, reverse=True):  # the backslash, which all escapes hold, comes first
        raw = raw.replace(bytes([code]), _ESCAPES[code])
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(raw))
