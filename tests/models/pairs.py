"""Real preference pairs as conversational rows (our demo pairs, HH-RLHF from outside the repository) and as a shard."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Tokens
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import Completion, Group
from pipeline.models.prompts import DialogueTokenizer, PairTokenizer, TokenizedPair
from pipeline.schema import CHOSEN, DROP_REASON, DROP_STAGE, ID, KEPT, MESSAGES, PROMPT, REJECTED, STATUS, TOOLS
from pipeline.steps.score_stages import Tokenise
from tests.fixtures_models import tiny_tokenizer

Row = dict[str, list[dict[str, str]]]


def demo_pairs(count: int) -> list[Row]:
    """The first pairs of the demo set."""
    path = Path(__file__).resolve().parents[2] / "pipeline" / "demo" / "pairs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [_row(json.loads(line)) for line in lines]


def hh_pairs(path: Path, count: int) -> list[Row]:
    """The first pairs of a file of HH-RLHF, gzipped JSON lines, that differ in the last turn only and have both."""
    rows: list[Row] = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            chosen, rejected = (_turns(json.loads(line)[side]) for side in ("chosen", "rejected"))
            fits = chosen[:-1] == rejected[:-1] and chosen[-1] != rejected[-1]
            if fits and chosen[-1]["content"] and rejected[-1]["content"]:
                rows.append({"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]})
            if len(rows) == count:
                break
    return rows


def _row(record: dict[str, Any]) -> Row:
    return {name: record[name] for name in ("prompt", "chosen", "rejected")}


def _turns(transcript: str) -> list[dict[str, str]]:
    turns = []
    for part in transcript.split("\n\nHuman:")[1:]:
        human, _, assistant = part.partition("\n\nAssistant:")
        turns += [{"role": "user", "content": human.strip()}, {"role": "assistant", "content": assistant.strip()}]
    return turns


def tokenized_pairs(rows: list[Row]) -> pa.Table:
    """A shard as the scoring stages take it: pairs with their token ids under the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    table = pa.table(
        {
            ID: [f"row-{index}" for index in range(len(rows))],
            **{name: pa.array([row[name] for row in rows], MESSAGES) for name in (PROMPT, CHOSEN, REJECTED)},
            TOOLS: pa.nulls(len(rows), pa.string()),
            STATUS: [KEPT] * len(rows),
            DROP_STAGE: pa.nulls(len(rows), pa.string()),
            DROP_REASON: pa.nulls(len(rows), pa.string()),
        }
    )
    table = Tokenise(PairTokenizer(tokenizer, Tokens()))(table)
    return Tokenise(DialogueTokenizer(tokenizer, max_length=2048))(table)


def pair_groups(pairs: Sequence[TokenizedPair]) -> list[Group]:
    """A group of two for each pair: chosen, then rejected."""
    return [
        (
            Completion(ids=pair.chosen_ids, start=pair.chosen_start),
            Completion(ids=pair.rejected_ids, start=pair.rejected_start),
        )
        for pair in pairs
    ]


def score_pairs(engine: LogprobEngine, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """Summed log-probabilities of the chosen and of the rejected responses, shape (2, pairs)."""
    return engine.score(pair_groups(pairs)).values.reshape(-1, 2).T.copy()
