"""Scored datasets for the tests of selection: made without a model, written through the storage protocol itself.

The rows have what real ones have: prompts of several pairs, a group column with nulls, contradicted labels, texts that
nearly repeat, repeats of a whole row, dropped rows, and rows without a reward.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from pipeline import schema as names
from pipeline.config import Config, Storage, parse_config
from pipeline.data.manifest import SCORED
from pipeline.data.parts import commit_part
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run
from tests.data.tables import spec_of

TOPIC = "topic"
TOPICS = ("math", "code", "chat", None)
SCHEMA = names.scored_schema([pa.field(TOPIC, pa.string())])
FINGERPRINT = {"source": "made for tests", "policy": {"model": "none"}}
SCORE_CONFIG = {"objective": {"name": "dpo", "beta": 0.1}}
WORDS = np.array([f"w{i}ord" for i in range(900)])
PER_PROMPT = 4  # rows of one prompt


def scored_table(num_rows: int = 400, *, seed: int = 0, tag: str = "row", shift: float = 0.0) -> pa.Table:
    """All rows of a dataset, dropped ones and repeats among them, in no particular order.

    shift: added to every explicit margin. Of the rows about a tenth are near-duplicates of another, a tenth dropped.
    """
    chance = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(num_rows):
        copied = rows[chance.integers(len(rows))] if i % 10 == 9 else None
        rows.append(_row(f"{tag}-{i:05d}", i, chance, shift, copied))
    repeats = [dict(rows[i]) for i in range(3, num_rows, num_rows // 7)]
    dropped = [_dropped(row) for row in rows[5 :: max(1, num_rows // 11)]]
    table = pa.Table.from_pylist([*(row for row in rows if row not in dropped), *repeats], schema=SCHEMA)
    return table.take(pa.array(chance.permutation(table.num_rows)))


def _row(id_: str, number: int, chance: np.random.Generator, shift: float, copied: dict[str, Any] | None) -> dict:
    base = float(chance.normal())
    margin = float(chance.normal(0.8, 1.0)) + shift
    logps = {name: -float(chance.gamma(40.0, 2.0)) for name in (
        names.POLICY_LOGP_CHOSEN, names.POLICY_LOGP_REJECTED,
        names.REFERENCE_LOGP_CHOSEN, names.REFERENCE_LOGP_REJECTED,
    )}  # fmt: skip
    logps[names.POLICY_LOGP_CHOSEN] += 6.0  # the policy leans to the chosen side, as a trained one does
    if copied is None:
        prompt = _turn("user", f"question {number // PER_PROMPT} of the set")
        sides = [_turn("assistant", " ".join(chance.choice(WORDS, 40))) for _ in range(2)]
    else:
        prompt = copied[names.PROMPT]
        words = copied[names.CHOSEN][0]["content"].split()
        sides = [_turn("assistant", " ".join([*words[:-1], "changed"])), copied[names.REJECTED]]
    return {
        names.ID: id_,
        names.CONTENT_DIGEST: hashlib.blake2b(id_.encode(), digest_size=16).hexdigest(),
        names.PROMPT: prompt,
        names.CHOSEN: sides[0],
        names.REJECTED: sides[1],
        names.REWARD_CHOSEN: None if number % 97 == 50 else base + margin,
        names.REWARD_REJECTED: base,
        names.REWARDS_ALL: [base, base + margin, base - 0.5],
        **logps,
        names.NUM_TOKENS_PROMPT: 7,
        names.NUM_TOKENS_CHOSEN: int(chance.integers(5, 60)),
        names.NUM_TOKENS_REJECTED: int(chance.integers(5, 60)),
        names.TRUNCATED: False,
        names.STATUS: names.KEPT,
        names.SOURCE_FILE: "made.jsonl",
        names.SOURCE_ROW: number,
        TOPIC: TOPICS[int(chance.choice(4, p=[0.5, 0.25, 0.15, 0.1]))],
    }


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _dropped(row: dict[str, Any]) -> dict[str, Any]:
    for field in names.SCORE_FIELDS:
        row[field.name] = None
    row.update({names.STATUS: names.DROPPED, names.DROP_STAGE: "tokenise", names.DROP_REASON: "prompt_too_long"})
    return row


def write_scored(url: str | Path, storage: Storage, table: pa.Table, shard_rows: int) -> str:
    """A complete scored dataset of this table in shards; the fingerprint is the same for every layout."""
    place = Place.open(str(url), storage)
    starts = range(0, table.num_rows, shard_rows)
    run = Run.claim(place, Plan(
        kind=SCORED,
        fingerprint=FINGERPRINT,
        shards=tuple({"file": "made", "start": s, "num_rows": min(shard_rows, table.num_rows - s)} for s in starts),
        schema=table.schema,
        config=SCORE_CONFIG,
        version="0.0.0",
        source_format="messages",
    ))  # fmt: skip
    for index, start in enumerate(starts):
        commit_part(place, spec_of(run.plan, index), table.slice(start, shard_rows))
    run.finish({})
    return str(url)


def sections(scored: str, output: str | Path, storage: Storage | None = None, /, **given: Any) -> dict[str, Any]:
    """The sections of a config that selects, as a user would write them; those given are merged over the defaults."""
    base: dict[str, Any] = {
        "storage": (storage or Storage()).model_dump(mode="json"),
        "scored": scored,
        **SCORE_CONFIG,
        "output": {"path": str(output), "rows_per_file": 37},
        "select": {"engine": "plain"},
    }
    if not {"k", "fraction", "min_score", "max_score", "stats_from"} & set(given.get("select") or {}):
        base["select"]["fraction"] = 0.4
    for name, section in given.items():
        merge = isinstance(section, Mapping) and not (name == "objective" and "name" in section)
        base[name] = {**base.get(name, {}), **section} if merge else section
    return base


def select_config(scored: str, output: str | Path, storage: Storage | None = None, /, **given: Any) -> Config:
    """The same as a checked config."""
    return parse_config(sections(scored, output, storage, **given))


def write_config(path: Path, data: Mapping[str, Any]) -> Path:
    """The sections as a YAML file."""
    path.write_text(yaml.safe_dump(dict(data)))
    return path


def objects(url: str | Path, storage: Storage | None = None) -> dict[str, bytes]:
    """Digest of every object of a subset by its relative path.

    run.json and _SUCCESS.json hold the config, in which paths and the engine may differ, and a seal of the whole: they
    are taken without these.
    """
    place = Place.open(str(url), storage or Storage())
    found = {}
    for path in place.fs.find(place.root):
        name, data = path.removeprefix(place.root).strip("/"), place.fs.cat_file(path)
        if name in ("run.json", "_SUCCESS.json"):
            data = json.dumps(
                {k: v for k, v in json.loads(data).items() if k not in ("config", "seal")}, sort_keys=True
            ).encode()
        found[name] = hashlib.blake2b(data).digest()
    return found


def read_json(url: str | Path, name: str, storage: Storage | None = None) -> dict[str, Any]:
    """A JSON object below `url`."""
    place = Place.open(str(url), storage or Storage())
    return json.loads(place.fs.cat_file(f"{place.root}/{name}"))


def rows_of(url: str | Path) -> list[dict[str, Any]]:
    """The rows of a subset on local disk, as a trainer reads them."""
    from datasets import load_from_disk

    return load_from_disk(f"{url}/hf")["train"].to_list()


def candidates(table: pa.Table) -> list[dict[str, Any]]:
    """Scored rows, each id once."""
    rows = {row[names.ID]: row for row in table.to_pylist() if row[names.STATUS] == names.KEPT}
    return list(rows.values())


def explicit_of(row: Mapping[str, Any]) -> float:
    """Signed explicit margin; NaN where there is none."""
    if row[names.REWARD_CHOSEN] is None or row[names.REWARD_REJECTED] is None:
        return float("nan")
    return row[names.REWARD_CHOSEN] - row[names.REWARD_REJECTED]


def implicit_of(row: Mapping[str, Any], beta: float = 0.1) -> float:
    """Implicit margin of DPO."""
    chosen = row[names.POLICY_LOGP_CHOSEN] - row[names.REFERENCE_LOGP_CHOSEN]
    return beta * (chosen - (row[names.POLICY_LOGP_REJECTED] - row[names.REFERENCE_LOGP_REJECTED]))


def potentials(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The rows that can be ranked, and their potential with z-scores over these rows."""
    ranked = [row for row in rows if not np.isnan(explicit_of(row))]
    explicit = np.array([explicit_of(row) for row in ranked])
    implicit = np.abs([implicit_of(row) for row in ranked])
    return ranked, zscores(explicit) - zscores(implicit)


def zscores(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def best_ids(ids: list[str], scores: np.ndarray, k: int) -> set[str]:
    """Ids of the k best rows, ties by id."""
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))
    return {ids[i] for i in order[:k]}
