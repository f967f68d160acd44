"""What the selection benchmark reads: a scored dataset with texts of UltraFeedback's lengths, and scores alone."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Storage
from tests.steps.scored_data import write_scored

_WORDS = np.array([f"{stem}{end}" for stem in ("an", "re", "con", "pro", "un", "in", "de", "ex") for end in
                   ("", "tion", "ly", "ing", "ment", "er", "ed", "s", "able", "ness")])  # fmt: skip
_LENGTHS = {schema.PROMPT: 110, schema.CHOSEN: 220, schema.REJECTED: 190}
"""Mean words of each side; UltraFeedback's binarized pairs have about these, with a long tail."""


def scored_dataset(folder: Path, num_rows: int, num_files: int) -> str:
    """A complete scored dataset of dpo margins in `num_files` parts; made once."""
    path = folder / f"scored-{num_rows}-{num_files}"
    if not (path / "_SUCCESS.json").exists():
        write_scored(path, Storage(), _table(num_rows), -(-num_rows // num_files))
    return str(path)


def scores(num_rows: int) -> np.ndarray:
    """Potentials as they come out of two z-scores."""
    return np.random.default_rng(7).normal(0.0, 1.4, num_rows)


def _table(num_rows: int) -> pa.Table:
    chance = np.random.default_rng(num_rows)
    logps = {name: -chance.gamma(12.0, 22.0, num_rows) for name in (
        schema.POLICY_LOGP_CHOSEN, schema.POLICY_LOGP_REJECTED,
        schema.REFERENCE_LOGP_CHOSEN, schema.REFERENCE_LOGP_REJECTED,
    )}  # fmt: skip
    ids = [f"{value:032x}" for value in chance.permutation(num_rows)]
    columns = {
        schema.ID: ids,
        schema.CONTENT_DIGEST: [hashlib.blake2b(id_.encode(), digest_size=16).hexdigest() for id_ in ids],
        **{name: _messages(chance, num_rows, name) for name in _LENGTHS},
        schema.REWARD_CHOSEN: chance.normal(0.8, 1.2, num_rows),
        schema.REWARD_REJECTED: chance.normal(0.0, 1.2, num_rows),
        **logps,
        schema.NUM_TOKENS_PROMPT: chance.integers(10, 400, num_rows),
        schema.NUM_TOKENS_CHOSEN: chance.integers(10, 500, num_rows),
        schema.NUM_TOKENS_REJECTED: chance.integers(10, 500, num_rows),
        schema.TRUNCATED: np.zeros(num_rows, dtype=np.bool_),
        schema.STATUS: ["kept"] * num_rows,
    }
    fields = schema.scored_schema()
    empty = {field.name: pa.nulls(num_rows, field.type) for field in fields}
    return pa.table([pa.array(columns[name], fields.field(name).type) if name in columns else empty[name]
                     for name in fields.names], schema=fields)  # fmt: skip


def _messages(chance: np.random.Generator, num_rows: int, side: str) -> pa.Array:
    """One turn a row: texts of lognormal length, cut out of one long text."""
    lengths = np.clip(chance.lognormal(np.log(_LENGTHS[side]) - 0.3, 0.8, num_rows), 3, 3000).astype(int)
    words = chance.choice(_WORDS, 200_000)
    starts = chance.integers(0, words.size - 3000, num_rows)
    texts = [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]
    roles = pa.array(["user" if side == schema.PROMPT else "assistant"] * num_rows)
    turns = pa.StructArray.from_arrays([roles, pa.array(texts)], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(num_rows + 1, dtype=np.int32)), turns).cast(schema.MESSAGES)
