r"""Formats in which chosen and rejected are text.

strings       a prompt and two answers, which become a user turn and assistant turns. The prompt is the column
              `prompt`, else `instruction` (with `input`), `question` or `input`. A `system` or `system_prompt`
              column becomes a system turn. `history` holds earlier rounds, `initial_reason_steps` the beginning of
              both answers.
transcript    "\n\nHuman: ...\n\nAssistant: ..." as in HH-RLHF. `chosen` and `rejected` are whole transcripts, whose
              common turns are the prompt. Or they go on from a `prompt` that ends with an open "\n\nAssistant:".
              White space around a turn is no part of it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.drops import DropRow, Reason
from pipeline.schema import CHOSEN, PROMPT, REJECTED, TOOLS
from pipeline.sources.columns import Columns, Kind, Row
from pipeline.sources.rows import (
    BEGUN,
    HISTORY,
    PROMPT_TEXTS,
    SYSTEM_TEXTS,
    TEXT,
    Format,
    PairRow,
    Turn,
    prompt_text_column,
)
from pipeline.sources.turns import (
    begun,
    checked_pair,
    completion_of,
    prompt_from_texts,
    split_dialogues,
    text_of,
    turns_of,
    user_turn,
    without_last_answers,
)

_MARKER: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_FEW: Final = 0.1
_OPENING: Final = re.compile(r"\A\s*(?:Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}
CONTEXT: Final = "context"
_QUESTION: Final = "question"
_PROMPT_TURNS: Final = (CONTEXT, "messages")
PROMPT_COLUMNS: Final = (*PROMPT_TEXTS, *_PROMPT_TURNS, HISTORY)
"""Columns in which `with_prompt` looks for the prompt."""


def has_prompt(columns: Columns) -> bool:
    """Whether `with_prompt` finds a prompt in such a table."""
    as_turns = any(columns.get(name) is Kind.TURNS for name in (PROMPT, *_PROMPT_TURNS))
    as_text = prompt_text_column(columns) is not None or columns.get(HISTORY) is Kind.TEXT
    return as_turns or as_text or columns.get(_QUESTION) is Kind.OTHER


def with_prompt(row: Row) -> Row:
    """The row with its prompt where `turns.any_pair` looks for it, if it stands elsewhere or in another way.

    These are HelpSteer3's `context` (messages), WebGPT's `question` (its `full_text`), SHP's `history`, and a prompt
    that is a transcript with an open "Assistant:" at its end, as in Nectar.
    """
    texts = [row.get(name) for name in PROMPT_TEXTS]
    turns = next((row[name] for name in _PROMPT_TURNS if isinstance(row.get(name), list)), None)
    question = row.get(_QUESTION)
    if turns is not None and row.get(PROMPT) is None:
        return {**row, PROMPT: turns}
    if isinstance(question, Mapping):
        return {**row, PROMPT: question.get("full_text")}
    text = next((text for text in (*texts, row.get(HISTORY)) if text is not None), None)
    if isinstance(text, str) and _OPENING.match(text) and text.rstrip().endswith("\n\nAssistant:"):
        return {**row, PROMPT: without_last_answers(_turns_of_transcript(text_of(text)))}
    return row if any(value is not None for value in texts) else {**row, PROMPT: text}


def _claims_strings(columns: Columns, sample: Sequence[Row]) -> bool:
    """Text whose prompts are all transcripts is the transcript format's alone."""
    prompt = prompt_text_column(columns)
    return not (prompt and all(_opens_like_transcript(sample, prompt) or [False]))


def _strings_pair(row: Row) -> PairRow:
    chosen, rejected = (completion_of(text_of(row.get(side))) for side in (CHOSEN, REJECTED))
    pair = checked_pair(after_history(row), chosen, rejected, row)
    return begun(pair, text_of(row[BEGUN])) if row.get(BEGUN) else pair


def after_history(row: Row) -> list[Turn]:
    """The prompt after the earlier turns in `history`: messages, or LLaMA-Factory's lists of question and answer."""
    system_and_user = prompt_from_texts(row)
    history = row.get(HISTORY)
    turns: list[Turn] = []
    for item in history if isinstance(history, list) else []:
        if isinstance(item, list) and len(item) == 2:
            turns += [user_turn(text_of(item[0])), *completion_of(text_of(item[1]))]
        else:
            turns += turns_of([item])
    return [*system_and_user[:-1], *turns, system_and_user[-1]]


def _claims_transcript(columns: Columns, sample: Sequence[Row]) -> bool:
    """Whether more than a few rows hold a text that opens like a transcript."""
    fields = (PROMPT, CHOSEN, REJECTED) if columns.get(PROMPT) is Kind.TEXT else (CHOSEN, REJECTED)
    return sum(any(_opens_like_transcript([row], *fields)) for row in sample) > _FEW * len(sample)


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
    about="`prompt` (or `instruction`, `question`, `input`), `chosen`, `rejected` as text; also `system`, `history`",
    wants={CHOSEN: TEXT, REJECTED: TEXT},
    prompt="text",
    known_from="TRL, OpenRLHF, LLaMA-Factory (alpaca), Intel's Orca DPO, Step-DPO",
    reads=(*PROMPT_TEXTS, *SYSTEM_TEXTS, CHOSEN, REJECTED, TOOLS, BEGUN, HISTORY),
    claims=_claims_strings,
    build=_strings_pair,
    layout="texts",
)
TRANSCRIPT = Format(
    name="transcript",
    about='`chosen` and `rejected` as "Human: ... Assistant: ..." text',
    known_from="HH-RLHF",
    wants={CHOSEN: TEXT, REJECTED: TEXT},
    reads=(PROMPT, CHOSEN, REJECTED, TOOLS),
    claims=_claims_transcript,
    build=_transcript_pair,
)
