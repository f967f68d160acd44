"""Which new prompts are kept.

A prompt that is not kept is dropped with stage `filter` and the first reason that holds, in the order of `why_unfit`.
The last user turn is what is judged. `drop_repeated` compares all new prompts of a round: it goes through them by id,
and of two that are alike it keeps the first, so that their order does not matter. Likeness is that of
`pipeline.selection.near_duplicates`. Memory: the texts, and 4 KiB for each given and each kept prompt.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline import schema as s
from pipeline.config import Evolve
from pipeline.drops import Reason
from pipeline.errors import DataError
from pipeline.selection.near_duplicates import NearDuplicates
from pipeline.selfplay.language import same_language
from pipeline.shown import quoted
from pipeline.sources.contamination import Contamination
from pipeline.sources.rows import Turn
from pipeline.steps.rows import drop_rows, kept_rows
from pipeline.words import normalised, words_of

# At the beginning only: requests may well quote or ask for an apology.
_REFUSAL: Final = re.compile(
    r"\A\W*(?:(?:i(?:'m| am) )?(?:very |really )?sorry,? (?:but|i (?:can|am|won))|i apologi[sz]e,? but|"
    r"as an? (?:ai|artificial|large language|language model)\b|"
    r"i(?:'m| am) (?:not able|unable) to (?:help|assist|fulfil|comply|provide|rewrite|create|generate)|"
    r"i (?:can't|cannot|can not|won't|will not) (?:help|assist|fulfil|comply|provide|rewrite|create|generate)|"
    r"i(?:'m| am) (?:just |only )?an? (?:ai|artificial|language model)\b)"
)
_META: Final = re.compile(
    r"\b(?:given|rewritten|original|evolved|revised|modified) (?:prompt|request|question|instruction)s?\b|"
    r"\b(?:new|above) prompt\b|\b(?:the|this|your) request\b|\bready to (?:help|assist)\b|"
    r"\b(?:prompt|request) (?:above|below)\b|\brewritten version\b|"
    r"#[^#\n]{0,40}\b(?:prompt|request|instruction)\b[^#\n]{0,10}#|\{(?:prompt|context)\}"
)


def filter_prompts(
    new: pa.Table, parents: pa.Table, given: Sequence[pa.Table], config: Evolve, benchmarks: Contamination | None = None
) -> pa.Table:
    """All new prompts of a round; those that are not kept are marked as dropped.

    parents: has the prompts that `parent_id` names. given: prompts that none may repeat, such as those the run
    started from, held-out ones included, and those made in earlier rounds.

    Raises:
        DataError: a parent is missing.
    """
    texts_of = {row[s.ID]: last_turn(row[s.PROMPT]) for row in parents.select([s.ID, s.PROMPT]).to_pylist()}
    reasons = {}
    for position, row in _live(new):
        if row[s.PARENT_ID] not in texts_of:
            raise DataError(
                f"prompt {quoted(row[s.ID])} was made from {quoted(row[s.PARENT_ID])}, which is not among the parents."
            )
        reason = why_unfit(last_turn(row[s.PROMPT]), texts_of[row[s.PARENT_ID]], config, benchmarks)
        if reason is not None:
            reasons[position] = reason
    return drop_repeated(drop_rows(new, reasons, stage="filter"), given, config.similarity)


def drop_repeated(new: pa.Table, given: Sequence[pa.Table], similarity: float) -> pa.Table:
    """The new prompts; those that repeat a given one, or a kept one of a smaller id, are marked as dropped."""
    index = NearDuplicates("near", similarity)
    by_id = {row[s.ID]: row[s.PROMPT] for table in given for _, row in _live(table)}
    index.admit([last_turn(by_id[id_]) for id_ in sorted(by_id)])
    live = sorted(_live(new), key=lambda found: (found[1][s.ID], str(found[1][s.PROMPT])))
    kept = index.admit([last_turn(row[s.PROMPT]) for _, row in live])
    repeats = [position for (position, _), keep in zip(live, kept, strict=True) if not keep]
    return drop_rows(new, dict.fromkeys(repeats, Reason.NEAR_DUPLICATE), stage="filter")


def why_unfit(text: str, parent: str, config: Evolve, benchmarks: Contamination | None = None) -> Reason | None:
    """Why a new prompt is not kept, judged by itself and its parent alone; None if it is."""
    shorter, longer = sorted((len(text), len(parent)))
    said, before = (normalised(each).replace("\u2019", "'") for each in (text, parent))
    checks: dict[Reason, Callable[[], bool]] = {
        Reason.EMPTY_PROMPT: lambda: not words_of(text),
        Reason.LENGTH_RATIO: lambda: longer > config.max_length_ratio * shorter,
        Reason.REFUSAL: lambda: _REFUSAL.match(said) is not None,
        Reason.META_PHRASE: lambda: bool(_META.search(said)) and not _META.search(before),
        Reason.OTHER_LANGUAGE: lambda: not same_language(text, parent),
        Reason.REPEATS_PARENT: lambda: not NearDuplicates("near", config.similarity).admit([parent, text])[1],
        Reason.CONTAMINATED: lambda: benchmarks is not None and benchmarks.hits(text),
    }
    return next((reason for reason, unfit in checks.items() if unfit()), None)


def last_turn(prompt: Sequence[Turn] | None) -> str:
    """The text of the last turn of a prompt; "" for one without turns."""
    return prompt[-1]["content"] if prompt else ""


def _live(table: pa.Table) -> list[tuple[int, Mapping[str, Any]]]:
    rows = table.to_pylist()
    return [(position, rows[position]) for position in kept_rows(table).tolist()]
