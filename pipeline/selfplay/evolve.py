"""Prompts made of prompts: each one is rewritten by the policy in some of five ways.

    plan_evolution   prompts -> one row for each prompt and strategy, which is a task; decides everything but the text
    evolve           tasks -> drafts, one row for one row: dropped, or with the text that the policy wrote

A task bears its parent's prompt, and an id of parent, strategy and round; a new prompt bears its own prompt, and the
digest of parent, strategy and text as its id. The last user turn is rewritten; system turn and earlier turns stay.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline import schema as s
from pipeline.config import Evolve, Strategy
from pipeline.drops import Drop, Reason
from pipeline.errors import DataError, IntegrityError
from pipeline.selfplay.sampler import Response, seed_of
from pipeline.selfplay.strategies import template_of
from pipeline.shown import quoted
from pipeline.sources.rows import Turn, json_digest
from pipeline.sources.turns import user_turn

Ask = Callable[[Sequence[list[Turn]], Sequence[int]], Sequence[Response | None]]
"""One response to each list of messages, given a seed for each; None where the messages are too long for the model."""


_SPEAKERS: Final = {"user": "User", "assistant": "Assistant"}
_QUOTES: Final = {'"': '"', "\u201c": "\u201d", "\u00ab": "\u00bb", "\u201e": "\u201c", "`": "`"}
_FENCE: Final = re.compile(r"\A```[^\n`]*\n(.*?)\n?```\Z", re.DOTALL)
# "#Rewritten Prompt#:", "**New request:**", "Here is the rewritten request:" and the like, before the text itself.
_LABEL: Final = re.compile(
    r"\A[#*_\s]*(?:(?:sure|certainly|of course)[,!.]\s*)?(?:here(?: is|'s|\u2019s)\s+)?(?:the |a |an |your |my )?"
    r"(?:(?:new|rewritten|evolved|revised|modified|edited|invented|updated)\s+)?"
    r"(?:prompt|request|question|instruction)\b(?:\s+(?:is|below|that[^\n:]{0,60}))?[#*_\s]*:[#*_\s]*(?=\S)",
    re.IGNORECASE,
)


def selected_prompts(pairs: pa.Table) -> pa.Table:
    """The different prompts of some pairs, as PROMPT_SCHEMA, by id.

    Raises:
        DataError: two different prompts have the same id.
    """
    found: dict[str, dict[str, Any]] = {}
    names = [s.PROMPT, *(field.name for field in s.PROVENANCE_FIELDS)]
    for row in pairs.select([s.PROMPT_ID, *names]).to_pylist():
        prompt = {s.ID: row[s.PROMPT_ID], **{name: row[name] for name in names}, s.STATUS: s.KEPT}
        if found.setdefault(row[s.PROMPT_ID], prompt)[s.PROMPT] != row[s.PROMPT]:
            raise DataError(f"pairs with the prompt_id {quoted(row[s.PROMPT_ID])} have different prompts.")
    return pa.Table.from_pylist([found[id_] for id_ in sorted(found)], schema=s.PROMPT_SCHEMA)


def plan_evolution(prompts: pa.Table, config: Evolve, *, round_: int) -> pa.Table:
    """A task for each usable prompt and each of its strategies, as PROMPT_SCHEMA, by prompt and strategy.

    With `per_prompt`, the strategies of a prompt are those of the smallest hashes of seed, round, prompt and strategy.
    """
    rows = [
        {
            s.ID: json_digest([row[s.ID], strategy, round_]),
            s.PROMPT: row[s.PROMPT],
            s.PARENT_ID: row[s.ID],
            s.STRATEGY: strategy,
            s.ROUND: round_,
            s.STATUS: s.KEPT,
        }
        for row in prompts.to_pylist()
        if row[s.STATUS] != s.DROPPED
        for strategy in _strategies_for(row[s.ID], config, round_)
    ]
    return pa.Table.from_pylist(rows, schema=s.PROMPT_SCHEMA)


def evolve(tasks: pa.Table, ask: Ask, config: Evolve) -> pa.Table:
    """The new prompt of each task, or why there is none, as DRAFT_SCHEMA in the same order; what `ask` says is cleaned.

    Raises:
        IntegrityError: `ask` gave another number of responses than it was asked for.
    """
    rows: list[dict[str, Any]] = tasks.to_pylist()
    live = [row for row in rows if row[s.STATUS] != s.DROPPED]
    asked = []
    for row in live:
        if row[s.PROMPT] and row[s.PROMPT][-1]["role"] == "user":
            asked.append(row)
        else:
            _drop(row, Reason.NO_LAST_USER_TURN)
    requests = [request_for(row[s.PROMPT], row[s.STRATEGY]) for row in asked]
    seeds = [seed_of(config.seed, row[s.PARENT_ID], row[s.STRATEGY], str(row[s.ROUND])) for row in asked]
    answers = ask(requests, seeds) if asked else []
    if len(answers) != len(asked):
        raise IntegrityError(f"{len(asked)} prompts were to be rewritten, but {len(answers)} responses came back.")
    for row, answer in zip(asked, answers, strict=True):
        _fill(row, answer)
    return pa.Table.from_pylist(rows, schema=s.DRAFT_SCHEMA)


def request_for(prompt: Sequence[Turn], strategy: Strategy) -> list[Turn]:
    """What the policy is asked, for a prompt that ends with a user turn."""
    said = [f"{_SPEAKERS[turn['role']]}: {turn['content']}\n\n" for turn in prompt[:-1] if turn["role"] in _SPEAKERS]
    context = f"The conversation before the request:\n\n{''.join(said)}" if said else ""
    return [user_turn(template_of(strategy).filled(prompt[-1]["content"], context))]


def cleaned(text: str) -> str:
    """The text of an answer without what models put around it: labels, quotation marks, Markdown fences."""
    before = None
    while text != before:
        before = text
        text = _LABEL.sub("", text.strip(), count=1)
        fenced = _FENCE.match(text)
        text = fenced[1] if fenced and "```" not in fenced[1] else text
        closing = _QUOTES.get(text[:1])
        inner = text[1:-1]
        if closing is not None and len(text) > 1 and text[-1] == closing and not {text[0], closing} & {*inner}:
            text = inner
    return text


def _strategies_for(prompt_id: str, config: Evolve, round_: int) -> list[Strategy]:
    drawn = sorted(
        dict.fromkeys(config.strategies), key=lambda name: seed_of(config.seed, str(round_), prompt_id, name)
    )
    return sorted(drawn[: config.per_prompt])


def _fill(row: dict[str, Any], answer: Response | None) -> None:
    if answer is None:
        _drop(row, Reason.REQUEST_TOO_LONG)
        return
    row[s.NUM_TOKENS_DRAFT] = answer.num_tokens
    text = cleaned(answer.text)
    if answer.finish_reason != "stop":
        _drop(row, Reason.UNFINISHED_RESPONSE)
    elif not text:
        _drop(row, Reason.EMPTY_PROMPT)
    else:
        row[s.PROMPT] = [*row[s.PROMPT][:-1], user_turn(text)]
        row[s.ID] = json_digest([row[s.PARENT_ID], row[s.STRATEGY], text])


def _drop(row: dict[str, Any], reason: Reason) -> None:
    row.update(Drop(reason, "evolve").columns)
