"""Plain text: a prompt and two answers, wrapped as a user turn and assistant turns.

The prompt is the column `prompt`, else `instruction` (with `input`), `question` or `input`; a `system` or
`system_prompt` column becomes a system turn.
"""

from collections.abc import Sequence
from typing import Final

from pipeline.schema import CHOSEN, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind
from pipeline.sources.messages import has_candidates
from pipeline.sources.rows import Format, PairRow, Row
from pipeline.sources.transcript import looks_like_transcripts
from pipeline.sources.turns import (
    PROMPT_TEXT_COLUMNS,
    SYSTEM_TEXT_COLUMNS,
    checked_pair,
    completion_of,
    lacking,
    prompt_from_texts,
    prompt_text_column,
    text_of,
)

_TEXT: Final = frozenset({Kind.TEXT})


def _needs(columns: Columns) -> list[str]:
    missing = lacking(columns, {CHOSEN: _TEXT, REJECTED: _TEXT})
    return missing if prompt_text_column(columns) else ["prompt (text)", *missing]


def _claims(columns: Columns, sample: Sequence[Row]) -> bool:
    """Text whose prompts are all transcripts is the transcript format's alone."""
    prompt = prompt_text_column(columns)
    return not has_candidates(columns) and not (prompt and looks_like_transcripts(sample, (prompt,), every=True))


def _pair(row: Row) -> PairRow:
    chosen, rejected = (completion_of(text_of(row.get(side))) for side in (CHOSEN, REJECTED))
    return checked_pair(prompt_from_texts(row), chosen, rejected, row)


STRINGS = Format(
    name="strings",
    about="prompt, chosen and rejected as plain text",
    reads=(*PROMPT_TEXT_COLUMNS, *SYSTEM_TEXT_COLUMNS, CHOSEN, REJECTED, TOOLS),
    needs=_needs,
    claims=_claims,
    build=_pair,
    layout="texts",
)
