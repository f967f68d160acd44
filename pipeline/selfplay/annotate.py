"""Candidates to annotated candidates: the reward of each of the K responses under the reward model.

A reward is null if the response is empty, if the reward model's template refuses it, if memory has no room for it, or
if the reward is not a finite number. A row without any reward is dropped, with the reason of the first response that is
not empty.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from pipeline.config import ClassifierReward, SelfPlayConfig, Tokens
from pipeline.drops import Reason
from pipeline.models.packing import Completion
from pipeline.schema import ANNOTATED_SCHEMA, ID, PROMPT, RESPONSE_REWARDS, RESPONSES
from pipeline.steps.rows import TRANSIENT_PREFIX, drop_rows, kept_rows, set_column, spread
from pipeline.steps.work import Apply, Stage

if TYPE_CHECKING:
    from pipeline.models.prompts import DialogueTokenizer, TokenizedDialogue
    from pipeline.models.rewards import ClassifierEngine

RESPONSE_IDS: Final = f"{TRANSIENT_PREFIX}response_ids"
"""Token ids of the whole dialogue of each response, null for one that gets no reward."""
RESPONSE_REASONS: Final = f"{TRANSIENT_PREFIX}response_reasons"
"""Why a response has no token ids, null for one that has."""


def annotate_stages(config: SelfPlayConfig) -> list[Stage]:
    """Candidates to annotated candidates, by the reward model."""
    return [
        Stage(name="tokenise", build=partial(_build_tokenise, config.reward, config.tokens)),
        Stage(name="annotate", build=partial(_build_annotate, config.reward), model=config.reward),
    ]


class TokeniseResponses:
    """Adds the token ids that the reward model reads: each response with its prompt, by the model's own template."""

    def __init__(self, tokenizer: "DialogueTokenizer") -> None:
        self._tokenizer = tokenizer

    def __call__(self, table: pa.Table) -> pa.Table:
        """Tokenise the K dialogues of the kept rows."""
        rows = kept_rows(table)
        ids: list[list[Any]] = []
        reasons: list[list[Reason | None]] = []
        for row in table.select([ID, PROMPT, RESPONSES]).take(pa.array(rows)).to_pylist():
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

    def _dialogue(self, row: Mapping[str, Any], text: str) -> "TokenizedDialogue | Reason":
        return self._tokenizer.tokenize_one(row[PROMPT], [{"role": "assistant", "content": text}], row=row[ID])


class AnnotateResponses:
    """Adds the rewards of the responses under a sequence classifier, float64, K to a row."""

    def __init__(self, engine: "ClassifierEngine") -> None:
        self._engine = engine
        self._checked = False

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the kept rows; drop those of which no response has a reward.

        Raises:
            ModelError: on the first rows, the engine's numbers are not those of the model's own forward.
        """
        rows = kept_rows(table)
        found = table.select([ID, RESPONSE_IDS, RESPONSE_REASONS]).take(pa.array(rows)).to_pylist()
        rewards: list[list[float | None]] = [[None] * len(row[RESPONSE_IDS]) for row in found]
        reasons = [[None if name is None else Reason(name) for name in row[RESPONSE_REASONS]] for row in found]
        places = [(i, k) for i, row in enumerate(found) for k, ids in enumerate(row[RESPONSE_IDS]) if ids is not None]
        # The dialogues of a row share their prompt, so it is computed once.
        groups: dict[int, list[Completion]] = {}
        for i, k in places:
            ids = np.asarray(found[i][RESPONSE_IDS][k], np.int32)
            groups.setdefault(i, []).append(Completion(ids=ids, start=0))
        if groups and not self._checked:
            from pipeline.steps.score_stages import check_engine

            check_engine(self._engine, list(groups.values()), [found[i][ID] for i in groups], "reward")
            self._checked = True
        scores = self._engine.score(list(groups.values()))
        for index, ((i, k), reward) in enumerate(zip(places, scores.values.tolist(), strict=True)):
            if np.isfinite(reward):
                rewards[i][k] = reward
            else:
                reasons[i][k] = scores.left_out.get(index, Reason.NON_FINITE_REWARD)
        empty = Reason.EMPTY_RESPONSES
        dropped = {
            int(row): next((reason for reason in why if reason is not None and reason != empty), empty)
            for row, values, why in zip(rows, rewards, reasons, strict=True)
            if all(value is None for value in values)
        }
        of_type = ANNOTATED_SCHEMA.field(RESPONSE_REWARDS).type
        column = spread(rewards, rows.tolist(), num_rows=table.num_rows, of_type=of_type)
        table = set_column(table, RESPONSE_REWARDS, column).select(ANNOTATED_SCHEMA.names).cast(ANNOTATED_SCHEMA)
        return drop_rows(table, dropped, stage="annotate")


def _build_tokenise(reward: ClassifierReward, tokens: Tokens) -> Apply:
    from pipeline.models.loading import load_tokenizer
    from pipeline.models.prompts import DialogueTokenizer

    return TokeniseResponses(DialogueTokenizer.of(load_tokenizer(reward), reward, tokens))


def _build_annotate(reward: ClassifierReward) -> Apply:
    from pipeline.models.rewards import ClassifierEngine

    return AnnotateResponses(ClassifierEngine.load(reward))
