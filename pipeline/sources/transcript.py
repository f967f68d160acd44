r"""Transcripts of the HH-RLHF kind: "\n\nHuman: ...\n\nAssistant: ..." in one text.

`chosen` and `rejected` are whole transcripts, whose common turns are the prompt, or go on from a `prompt` that is a
transcript ending with an open "\n\nAssistant:". White space around a turn is no part of it.
"""

import re
from collections.abc import Sequence
from typing import Final

from pipeline.drops import DropRow, Reason
from pipeline.schema import CHOSEN, PROMPT, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind
from pipeline.sources.messages import has_candidates
from pipeline.sources.rows import Format, PairRow, Row, Turn
from pipeline.sources.turns import checked_pair, lacking, split_dialogues, text_of

_MARKER: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_OPENING: Final = re.compile(r"\A\s*(?:Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}
_TEXT: Final = frozenset({Kind.TEXT})


def turns_of_transcript(text: str) -> list[Turn]:
    """The turns of a transcript, stripped, or DropRow where the text does not open with one."""
    opening, *rest = _MARKER.split(text)
    if opening.strip() or not rest:
        raise DropRow(Reason.NOT_A_TRANSCRIPT)
    return [
        {"role": _ROLES[speaker], "content": said.strip()} for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    ]


def looks_like_transcripts(sample: Sequence[Row], fields: Sequence[str], *, every: bool) -> bool:
    """Whether any, or every, non-null text of these fields opens like a transcript; False where there is none."""
    texts = [row[field] for row in sample for field in fields if isinstance(row.get(field), str)]
    found = [bool(_OPENING.match(text)) for text in texts]
    return bool(found) and (all(found) if every else any(found))


def _claims(columns: Columns, sample: Sequence[Row]) -> bool:
    if has_candidates(columns):
        return False
    fields = (PROMPT, CHOSEN, REJECTED) if columns.get(PROMPT) is Kind.TEXT else (CHOSEN, REJECTED)
    return looks_like_transcripts(sample, fields, every=False)


def _pair(row: Row) -> PairRow:
    chosen, rejected = text_of(row.get(CHOSEN)), text_of(row.get(REJECTED))
    head = row.get(PROMPT)
    if isinstance(head, str) and not (_OPENING.match(chosen) and _OPENING.match(rejected)):
        chosen, rejected = (text_of(head) + text for text in (chosen, rejected))
    return checked_pair(*split_dialogues(turns_of_transcript(chosen), turns_of_transcript(rejected)), row)


TRANSCRIPT = Format(
    name="transcript",
    about='chosen and rejected as "\\n\\nHuman: ...\\n\\nAssistant: ..." text',
    reads=(PROMPT, CHOSEN, REJECTED, TOOLS),
    needs=lambda columns: lacking(columns, {CHOSEN: _TEXT, REJECTED: _TEXT}),
    claims=_claims,
    build=_pair,
)
