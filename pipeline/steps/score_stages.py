"""The stages of scoring, in the order in which they run.

    tokenise -> reward -> policy -> reference

`score_stages` only describes them. `Stage.build` loads the weights, in the actor or loop that runs the stage.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.config import Config, TorchModel, VllmModel
from pipeline.drops import Reason
from pipeline.models.packing import Completion, Group
from pipeline.models.prompts import DialogueTokenizer, PairTokenizer
from pipeline.rewards.cache import cache_place
from pipeline.rewards.registry import reward_backends
from pipeline.steps.reward_stage import id_columns, reward_stage
from pipeline.steps.rows import (
    TRANSIENT_PREFIX,
    add_scores,
    drop_rows,
    kept_rows,
    set_column,
    spread,
    token_ids,
)
from pipeline.steps.work import Apply, Stage, close_stage

if TYPE_CHECKING:  # these load torch
    from pipeline.models.engine import Engine
    from pipeline.models.vllm_logprobs import VllmLogprobEngine

Role = Literal["policy", "reference"]

CHOSEN_IDS: Final = f"{TRANSIENT_PREFIX}chosen_ids"
REJECTED_IDS: Final = f"{TRANSIENT_PREFIX}rejected_ids"
CHOSEN_START: Final = f"{TRANSIENT_PREFIX}chosen_start"
REJECTED_START: Final = f"{TRANSIENT_PREFIX}rejected_start"

_IDS: Final = pa.list_(pa.int32())
# Columns of the tokens of a row: the field of the tokenised row, and the type.
_PAIR_COLUMNS: Final = {
    CHOSEN_IDS: ("chosen_ids", _IDS),
    REJECTED_IDS: ("rejected_ids", _IDS),
    CHOSEN_START: ("chosen_start", pa.int64()),
    REJECTED_START: ("rejected_start", pa.int64()),
    schema.NUM_TOKENS_PROMPT: ("num_tokens_prompt", pa.int64()),
    schema.NUM_TOKENS_CHOSEN: ("num_tokens_chosen", pa.int64()),
    schema.NUM_TOKENS_REJECTED: ("num_tokens_rejected", pa.int64()),
    schema.TRUNCATED: ("truncated", pa.bool_()),
}
_SCORES: Final[Mapping[Role, tuple[str, str]]] = {
    "policy": (schema.POLICY_LOGP_CHOSEN, schema.POLICY_LOGP_REJECTED),
    "reference": (schema.REFERENCE_LOGP_CHOSEN, schema.REFERENCE_LOGP_REJECTED),
}


def score_stages(config: Config) -> list[Stage]:
    """The stages that fill the score columns which the source does not hold already."""
    models, rewards = config.torch_models(), reward_backends(config.members)
    causal = [(role, models[role]) for role in _SCORES if role in models]
    stages = []
    if causal or any(reward.reads_ids for reward in rewards.values()):
        stages.append(Stage(name="tokenise", build=partial(_build_tokenise, config)))
    cache = cache_place(config.run, config.storage)
    stages += [reward_stage(member, reward, cache) for member, reward in rewards.items()]
    for role, model in causal:
        env = {}
        if isinstance(model, VllmModel):
            from pipeline.models.vllm_engine import environment

            env = environment(model.num_threads, model.engine_args)
        build = partial(_build_scores, model, role, config.tokens.max_length)
        stages.append(Stage(name=role, build=build, model=model, env=env))
    return stages


def tokenizers(config: Config) -> list["Tokenise"]:
    """What turns the pairs into tokens: for policy and reference, and for each reward that reads them."""
    from pipeline.models.loading import load_tokenizer

    models = config.torch_models()
    pair_model = models.get("policy") or models.get("reference")
    found = []
    if pair_model is not None:
        found.append(Tokenise(PairTokenizer(load_tokenizer(pair_model), config.tokens)))
    for member, reward in reward_backends(config.members).items():
        if reward.reads_ids:
            found.append(Tokenise(reward.tokenizer(config.tokens), member))
    return found


def pair_values(table: pa.Table) -> list[list[Any]]:
    """Of each row: its id, prompt, chosen, rejected, tools and arguments of the template; None for what it lacks."""
    names = [schema.ID, schema.PROMPT, schema.CHOSEN, schema.REJECTED, schema.TOOLS, schema.TEMPLATE_KWARGS]
    rows = table.select([name for name in names if name in table.column_names]).to_pylist()
    return [[row.get(name) for name in names] for row in rows]


def _build_tokenise(config: Config) -> Apply:
    stages = tokenizers(config)

    def tokenise(table: pa.Table) -> pa.Table:
        for stage in stages:
            table = stage(table)
        return table

    return tokenise


def _build_scores(model: TorchModel, role: Role, max_length: int) -> Apply:
    if isinstance(model, VllmModel):
        from pipeline.models.vllm_logprobs import VllmLogprobEngine

        return ScorePairs(VllmLogprobEngine(model, max_length), role)
    from pipeline.models.logprobs import LogprobEngine

    return ScorePairs(LogprobEngine.load(model), role)


class Tokenise:
    """Adds the token ids of both answers, by the tokenizer and chat template of one model.

    A PairTokenizer serves policy and reference. It also gives the token counts and the truncation flag. A
    DialogueTokenizer serves one member of the rewards.
    """

    def __init__(self, tokenizer: PairTokenizer | DialogueTokenizer, member: str = "") -> None:
        self.tokenizer = tokenizer
        chosen, rejected = id_columns(member)
        of_dialogues = {chosen: ("chosen_ids", _IDS), rejected: ("rejected_ids", _IDS)}
        self._columns = _PAIR_COLUMNS if isinstance(tokenizer, PairTokenizer) else of_dialogues

    def __call__(self, table: pa.Table) -> pa.Table:
        """Tokenise the kept rows. Rows that the template or the length limit makes unusable are dropped."""
        rows = kept_rows(table)
        kept: dict[int, Any] = {}
        dropped: dict[int, Reason] = {}
        for row, (id_, *turns) in zip(rows.tolist(), pair_values(table.take(pa.array(rows))), strict=True):
            found = self.tokenizer.tokenize(*turns, row=id_)
            if isinstance(found, Reason):
                dropped[row] = found
            else:
                kept[row] = found
        self.tokenizer.tell()
        table = drop_rows(table, dropped, stage="tokenise")
        for name, (field, of_type) in self._columns.items():
            values = [getattr(tokens, field) for tokens in kept.values()]
            table = set_column(table, name, spread(values, list(kept), num_rows=table.num_rows, of_type=of_type))
        return table


class ScorePairs:
    """Adds one float64 for each answer: its log-probability summed over the response tokens."""

    def __init__(self, engine: "Engine | VllmLogprobEngine", role: Role) -> None:
        self._engine = engine
        self._role: Role = role
        self._checked = False

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the kept rows. Rows without two finite numbers are dropped.

        Raises a ModelError if the engine's numbers for the first rows are not those of the model's own forward.
        """
        from pipeline.models.agreement import check_engine

        rows = kept_rows(table)
        groups = pair_groups(table, rows)
        if groups and not self._checked:
            check_engine(self._engine, groups, table.column(schema.ID).take(pa.array(rows)).to_pylist(), self._role)
            self._checked = True
        scores = self._engine.score(groups)
        return add_scores(table, scores, [_SCORES[self._role]], self._role, Reason.NON_FINITE_LOGP)

    def close(self) -> None:
        """Free what the engine holds beside torch modules, such as processes of its own."""
        close_stage(self._engine)


def pair_groups(table: pa.Table, rows: npt.NDArray[np.int64]) -> list[Group]:
    """For causal models: a group of the chosen and the rejected sequence for each of the rows."""
    ids = (token_ids(table, rows, name) for name in (CHOSEN_IDS, REJECTED_IDS))
    starts = (table.column(name).take(pa.array(rows)).to_pylist() for name in (CHOSEN_START, REJECTED_START))
    return [
        (Completion(ids=first, start=first_start), Completion(ids=second, start=second_start))
        for first, second, first_start, second_start in zip(*ids, *starts, strict=True)
    ]
