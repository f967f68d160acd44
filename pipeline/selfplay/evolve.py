"""Prompts made of prompts: the policy rewrites each one in some of five ways.

    plan_evolution   prompts -> tasks, one row for each prompt and strategy; decides everything but the text
    evolve           tasks -> drafts, one row for one row: dropped, or with the text that the policy wrote

A task has its parent's prompt, and an id of parent, strategy and round. A new prompt has the digest of parent, strategy
and text as its id. The last user turn is rewritten; system turn and earlier turns stay.

What the policy is asked is in templates/, one file a strategy. A file opens with `version: N` and a blank line;
`{context}` and `{prompt}` are filled in. Its digest is part of the fingerprint of every prompt made with it.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.config import Evolve, Generate, SelfPlayConfig, Strategy, Tokens, TorchModel
from pipeline.drops import Drop, Reason
from pipeline.errors import DataError, IntegrityError
from pipeline.selfplay.candidates import PromptRenderer, answering, environment
from pipeline.selfplay.sampler import Request, Response, Sampler, seed_of
from pipeline.shown import quoted
from pipeline.sources.rows import Turn, json_digest
from pipeline.sources.turns import user_turn
from pipeline.steps.work import Apply, Stage

Ask = Callable[[Sequence[list[Turn]], Sequence[int]], Sequence[Response | None]]
"""One response to each list of messages, given a seed for each; None if the messages are too long for the model."""

_HEADER: Final = re.compile(r"\Aversion: (\d+)\n\n")
_PLACES: Final = re.compile(r"\{(context|prompt)\}")
# Room that the instructions of the strategies take in a request, beside the prompt to be rewritten.
_INSTRUCTION_TOKENS: Final = 1024
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The request that makes new prompts by one strategy."""

    version: int
    text: str
    digest: str

    def filled(self, prompt: str, context: str = "") -> str:
        """The request for this prompt; `context` tells what was said before it, and ends with a blank line."""
        values = {"prompt": prompt, "context": context}
        return _PLACES.sub(lambda place: values[place[1]], self.text)


@cache
def template_of(strategy: Strategy) -> Template:
    """The template of a strategy."""
    path = Path(__file__).parent / "templates" / f"{strategy}.txt"
    whole = path.read_text(encoding="utf-8")
    header = _HEADER.match(whole)
    if header is None or {*_PLACES.findall(whole)} != {"context", "prompt"}:
        raise IntegrityError(f"template {path.name} is damaged. Install alignpot again.")
    digest = hashlib.sha256(whole.encode()).hexdigest()[:32]
    return Template(version=int(header[1]), text=whole[header.end() :].strip(), digest=digest)


def template_fingerprint(strategies: Sequence[Strategy]) -> dict[str, dict[str, int | str]]:
    """Version and digest of each strategy's template, by strategy."""
    templates = {name: template_of(name) for name in sorted(strategies)}
    return {name: {"version": each.version, "digest": each.digest} for name, each in templates.items()}


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
    rows = []
    for row in prompts.filter(pc.not_equal(prompts[s.STATUS], s.DROPPED)).to_pylist():
        hashes = {name: seed_of(config.seed, str(round_), row[s.ID], name) for name in config.strategies}
        for strategy in sorted(sorted(hashes, key=hashes.__getitem__)[: config.per_prompt]):
            task = {s.ID: json_digest([row[s.ID], strategy, round_]), s.PROMPT: row[s.PROMPT], s.STATUS: s.KEPT}
            rows.append(task | {s.PARENT_ID: row[s.ID], s.STRATEGY: strategy, s.ROUND: round_})
    return pa.Table.from_pylist(rows, schema=s.PROMPT_SCHEMA)


def evolve(tasks: pa.Table, ask: Ask, config: Evolve) -> pa.Table:
    """The new prompt of each task, or why there is none, as DRAFT_SCHEMA in the same order."""
    rows: list[dict[str, Any]] = tasks.to_pylist()
    live = [row for row in rows if row[s.STATUS] != s.DROPPED]
    asked = []
    for row in live:
        if row[s.PROMPT] and row[s.PROMPT][-1]["role"] == "user":
            asked.append(row)
        else:
            row.update(Drop(Reason.NO_LAST_USER_TURN, "evolve").columns)
    requests = [request_for(row[s.PROMPT], row[s.STRATEGY]) for row in asked]
    seeds = [seed_of(config.seed, row[s.PARENT_ID], row[s.STRATEGY], str(row[s.ROUND])) for row in asked]
    answers = ask(requests, seeds) if asked else []
    if len(answers) != len(asked):
        raise IntegrityError(f"{len(asked)} prompts were to be rewritten, but {len(answers)} responses came back.")
    for row, answer in zip(asked, answers, strict=True):
        _fill(row, answer)
    return pa.Table.from_pylist(rows, schema=s.DRAFT_SCHEMA)


def evolve_stage(config: SelfPlayConfig, policy: TorchModel) -> Stage:
    """Tasks to new prompts, by a policy in the engine that also answers prompts; needs the section evolve."""
    assert config.evolve is not None  # noqa: S101
    evolve = config.evolve
    changes = {
        "num_responses": 1,
        "temperature": evolve.temperature,
        "top_p": evolve.top_p,
        "max_tokens": evolve.max_tokens,
        "max_prompt_tokens": config.generate.max_prompt_tokens + _INSTRUCTION_TOKENS,
    }
    generate = config.generate.model_copy(update=changes)
    build = partial(_build_evolve, evolve, generate, config.tokens, policy)
    return Stage(name="evolve", build=build, model=generate, env=environment(generate))


class EvolvePrompts:
    """`evolve` by a policy. The whole table is sampled as one call; too long requests are not asked."""

    def __init__(self, sampler: Sampler, renderer: PromptRenderer, generate: Generate, config: Evolve) -> None:
        self._sampler = sampler
        self._renderer = renderer
        self._generate = generate
        self._config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        """The new prompt of each task, or why there is none."""
        return evolve(table, self._ask, self._config)

    def close(self) -> None:
        """Free the model."""
        self._sampler.close()

    def _ask(self, messages: Sequence[list[Turn]], seeds: Sequence[int]) -> list[Response | None]:
        ids = [self._renderer.token_ids(turns) for turns in messages]
        requests = {
            i: Request(prompt_ids=found, seed=seeds[i]) for i, found in enumerate(ids) if not isinstance(found, Reason)
        }
        answers = self._sampler.sample(list(requests.values()), self._generate) if requests else []
        said = {i: responses[0] for i, responses in zip(requests, answers, strict=True)}
        return [said.get(i) for i in range(len(ids))]


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


def _fill(row: dict[str, Any], answer: Response | None) -> None:
    if answer is None:
        row.update(Drop(Reason.REQUEST_TOO_LONG, "evolve").columns)
        return
    row[s.NUM_TOKENS_DRAFT] = answer.num_tokens
    text = cleaned(answer.text)
    if answer.finish_reason != "stop" or not text:
        unfinished = answer.finish_reason != "stop"
        reason = Reason.UNFINISHED_RESPONSE if unfinished else Reason.EMPTY_PROMPT
        row.update(Drop(reason, "evolve").columns)
    else:
        row[s.PROMPT] = [*row[s.PROMPT][:-1], user_turn(text)]
        row[s.ID] = json_digest([row[s.PARENT_ID], row[s.STRATEGY], text])


def _build_evolve(evolve: Evolve, generate: Generate, tokens: Tokens, policy: TorchModel) -> Apply:
    return EvolvePrompts(*answering(generate, tokens, policy), generate, evolve)
