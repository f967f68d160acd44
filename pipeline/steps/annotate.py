"""Candidates to annotated candidates: the reward of each of the K responses.

A reward is null if the response is empty, if the reward model's template refuses it, if the back end leaves it out, or
if the reward is not a finite number. A row without any reward is dropped, with the reason of the first response that is
not empty.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.config import Tokens, names_of, reward_key
from pipeline.data.place import Place
from pipeline.drops import Reason
from pipeline.models.prompts import DialogueTokenizer, TokenizedDialogue
from pipeline.rewards.backend import Backend, Dialogue, Scorer
from pipeline.rewards.registry import reward_backends
from pipeline.schema import (
    ANNOTATED_SCHEMA,
    CONTENT_DIGEST,
    ID,
    OUTCOME_FIELDS,
    PROMPT,
    RESPONSE_REWARDS,
    RESPONSES,
    TEMPLATE_KWARGS,
    TOOLS,
    response_rewards,
)
from pipeline.steps.rows import TRANSIENT_PREFIX, drop_rows, kept_rows, set_column, spread
from pipeline.steps.work import Apply, Stage

_READS: Final = (ID, PROMPT, RESPONSES, TOOLS, TEMPLATE_KWARGS)
RESPONSE_IDS: Final = f"{TRANSIENT_PREFIX}response_ids"
"""Token ids of the whole dialogue of each response, null for one that gets no reward."""
RESPONSE_REASONS: Final = f"{TRANSIENT_PREFIX}response_reasons"
"""Why a response has no token ids, null for one that has."""


def annotate_stages(
    members: Mapping[str, Any], tokens: Tokens, schema: pa.Schema, cache: Place | None = None
) -> list[Stage]:
    """Candidates to annotated candidates, by one reward after another.

    members: sections of the rewards, by name. schema: of what comes out. cache: of what services answer.
    """
    stages = []
    for member, reward in reward_backends(members).items():
        key = reward_key(member) if member else ""
        if reward.reads_ids:
            tokenise = partial(_build_tokenise, reward, tokens)
            stages.append(Stage(name="tokenise", build=tokenise, key=key and f"tokenise.{member}"))
        build = partial(_build_annotate, reward, cache, names_of(member, reward.section), schema)
        stages.append(Stage(name="annotate", build=build, model=reward.section, key=key, env=reward.env()))
    return stages


class TokeniseResponses:
    """Adds the token ids that the reward model reads: each response with its prompt, by the model's own template."""

    def __init__(self, tokenizer: DialogueTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, table: pa.Table) -> pa.Table:
        """Tokenise the K dialogues of the kept rows."""
        rows = kept_rows(table)
        ids: list[list[Any]] = []
        reasons: list[list[Reason | None]] = []
        for row in _selected(table, _READS).take(pa.array(rows)).to_pylist():
            found = [self._dialogue(row, text) if text else Reason.EMPTY_RESPONSES for text in row[RESPONSES]]
            ids.append([None if isinstance(one, Reason) else one.ids for one in found])
            reasons.append([one if isinstance(one, Reason) else None for one in found])
        for name, values, of_type in (
            (RESPONSE_IDS, ids, pa.list_(pa.list_(pa.int32()))),
            (RESPONSE_REASONS, reasons, pa.list_(pa.string())),
        ):
            column = spread(values, rows.tolist(), num_rows=table.num_rows, of_type=of_type)
            table = set_column(table, name, column)
        return table

    def _dialogue(self, row: Mapping[str, Any], text: str) -> TokenizedDialogue | Reason:
        beside = row.get(TOOLS), row.get(TEMPLATE_KWARGS)
        return self._tokenizer.tokenize_one(row[PROMPT], _answer(text), *beside, row=row[ID])


class AnnotateResponses:
    """Adds the rewards of the responses by one scorer, float64, K to a row.

    reads_ids: whether the scorer reads token ids, as TokeniseResponses makes them just before. names: of its rewards,
    one for each head. schema: of what comes out of all scorers. A scorer of turns gets those of its columns that are
    not alignpot's own.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        reads_ids: bool,
        names: Sequence[str] = ("",),
        schema: pa.Schema = ANNOTATED_SCHEMA,
    ) -> None:
        self._scorer, self._names, self._schema = scorer, names, schema
        own = {*ANNOTATED_SCHEMA.names, *_READS, CONTENT_DIGEST, *(field.name for field in OUTCOME_FIELDS)}
        extra = [name for name in schema.names if name not in own and not name.startswith(RESPONSE_REWARDS)]
        self._dialogues = _dialogues_as_ids if reads_ids else partial(_dialogues_as_turns, extra=extra)
        self._columns = [ID, RESPONSE_IDS, RESPONSE_REASONS] if reads_ids else [*_READS, *extra]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the kept rows; drop those of which no response has a reward. Raises as the scorer."""
        rows = kept_rows(table)
        found = [self._dialogues(row) for row in _selected(table, self._columns).take(pa.array(rows)).to_pylist()]
        rewards: list[list[Sequence[float | None]]] = [[[None] * len(self._names)] * len(row) for row in found]
        reasons = [[one if isinstance(one, Reason) else None for one in row] for row in found]
        places = [(i, k) for i, row in enumerate(found) for k, one in enumerate(row) if not isinstance(one, Reason)]
        # The dialogues of a row share their prompt, so they go together.
        groups = [[one for one in row if not isinstance(one, Reason)] for row in found]
        scores = self._scorer.score([group for group in groups if group])
        values = scores.values.reshape(len(places), len(self._names)).tolist()
        for index, ((i, k), reward) in enumerate(zip(places, values, strict=True)):
            if np.isfinite(reward).all():
                rewards[i][k] = reward
            else:
                reasons[i][k] = scores.left_out.get(index, Reason.NON_FINITE_REWARD)
        empty = Reason.EMPTY_RESPONSES
        dropped = {
            int(row): next((reason for reason in why if reason is not None and reason != empty), empty)
            for row, responses, why in zip(rows, rewards, reasons, strict=True)
            if all(None in response for response in responses)
        }
        for head, name in enumerate(map(response_rewards, self._names)):
            of_head = [[response[head] for response in responses] for responses in rewards]
            of_type = self._schema.field(name).type
            table = set_column(table, name, spread(of_head, rows.tolist(), num_rows=table.num_rows, of_type=of_type))
        made = pa.schema([field for field in self._schema if field.name in table.column_names], table.schema.metadata)
        return drop_rows(table.select(made.names).cast(made), dropped, stage="annotate")

    def close(self) -> None:
        """Free what the scorer holds."""
        self._scorer.close()


def _dialogues_as_ids(row: Mapping[str, Any]) -> list[Dialogue | Reason]:
    """Of each response its dialogue as token ids, or why it gets no reward."""
    return [
        Dialogue(id=row[ID], ids=np.asarray(ids, np.int32)) if reason is None else Reason(reason)
        for ids, reason in zip(row[RESPONSE_IDS], row[RESPONSE_REASONS], strict=True)
    ]


def _dialogues_as_turns(row: Mapping[str, Any], extra: Sequence[str]) -> list[Dialogue | Reason]:
    """The same as turns, with these further columns."""
    whole = {
        "id": row[ID],
        "prompt": row[PROMPT],
        "tools": row.get(TOOLS),
        "template_kwargs": row.get(TEMPLATE_KWARGS),
        "columns": {name: row[name] for name in extra},
    }
    return [Dialogue(answer=_answer(text), **whole) if text else Reason.EMPTY_RESPONSES for text in row[RESPONSES]]


def _selected(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """These columns, as far as they are there."""
    return table.select([name for name in names if name in table.column_names])


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _build_tokenise(reward: Backend[Any], tokens: Tokens) -> Apply:
    return TokeniseResponses(reward.tokenizer(tokens))


def _build_annotate(reward: Backend[Any], cache: Place | None, names: Sequence[str], schema: pa.Schema) -> Apply:
    return AnnotateResponses(reward.scorer(cache), reads_ids=reward.reads_ids, names=names, schema=schema)
