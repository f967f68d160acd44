r"""Formats in which chosen and rejected are text.

strings       a prompt and two answers, which become a user turn and assistant turns. The prompt is the column
              `prompt`, else `instruction` (with `input`), `question` or `input`. A `system` or `system_prompt`
              column becomes a system turn.
transcript    "\n\nHuman: ...\n\nAssistant: ..." as in HH-RLHF. `chosen` and `rejected` are whole transcripts, whose
              common turns are the prompt. Or they go on from a `prompt` that ends with an open "\n\nAssistant:".
              White space around a turn is no part of it.
"""

import re
from collections.abc import Sequence
from typing import Final

from pipeline.drops import DropRow, Reason
from pipeline.schema import CHOSEN, PROMPT, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind, Row
from pipeline.sources.rows import PROMPT_TEXTS, SYSTEM_TEXTS, TEXT, Format, PairRow, Turn, prompt_text_column
from pipeline.sources.turns import checked_pair, completion_of, prompt_from_texts, split_dialogues, text_of

_MARKER: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_OPENING: Final = re.compile(r"\A\s*(?:Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}


def _claims_strings(columns: Columns, sample: Sequence[Row]) -> bool:
    """Text whose prompts are all transcripts is the transcript format's alone."""
    prompt = prompt_text_column(columns)
    return not (prompt and all(_opens_like_transcript(sample, prompt) or [False]))


def _strings_pair(row: Row) -> PairRow:
    chosen, rejected = (completion_of(text_of(row.get(side))) for side in (CHOSEN, REJECTED))
    return checked_pair(prompt_from_texts(row), chosen, rejected, row)


def _claims_transcript(columns: Columns, sample: Sequence[Row]) -> bool:
    fields = (PROMPT, CHOSEN, REJECTED) if columns.get(PROMPT) is Kind.TEXT else (CHOSEN, REJECTED)
    return any(_opens_like_transcript(sample, *fields))


def _transcript_pair(row: Row) -> PairRow:
    chosen, rejected = text_of(row.get(CHOSEN)), text_of(row.get(REJECTED))
    head = row.get(PROMPT)
    if isinstance(head, str) and not (_OPENING.match(chosen) and _OPENING.match(rejected)):
        chosen, rejected = (text_of(head) + text for text in (chosen, rejected))
    return checked_pair(*split_dialogues(_turns_of_transcript(chosen), _turns_of_transcript(rejected)), row)


def _turns_of_transcript(text: str) -> list[Turn]:
    """The turns of a transcript, stripped, or DropRow where the text does not open with one."""
    opening, *rest = _MARKER.split(text)
    if opening.strip() or not rest:
        raise DropRow(Reason.NOT_A_TRANSCRIPT)
    return [
        {"role": _ROLES[speaker], "content": said.strip()} for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    ]


def _opens_like_transcript(sample: Sequence[Row], *fields: str) -> list[bool]:
    """Whether each text in these fields opens like a transcript; null and other values are left out."""
    texts = [row[field] for row in sample for field in fields if isinstance(row.get(field), str)]
    return [bool(_OPENING.match(text)) for text in texts]


STRINGS = Format(
    name="strings",
    about="prompt, chosen and rejected as plain text",
    wants={CHOSEN: TEXT, REJECTED: TEXT},
    prompt="text",
    reads=(*PROMPT_TEXTS, *SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS),
    claims=_claims_strings,
    build=_strings_pair,
    layout="texts",
)
TRANSCRIPT = Format(
    name="transcript",
    about='chosen and rejected as "\\n\\nHuman: ...\\n\\nAssistant: ..." text',
    wants={CHOSEN: TEXT, REJECTED: TEXT},
    reads=(PROMPT, CHOSEN, REJECTED, TOOLS),
    claims=_claims_transcript,
    build=_transcript_pair,
)
