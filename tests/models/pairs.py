"""Real preference pairs as conversational rows: our own demo pairs, and HH-RLHF from outside the repository."""

import gzip
import json
from pathlib import Path
from typing import Any

Row = dict[str, list[dict[str, str]]]


def demo_pairs(count: int) -> list[Row]:
    """The first pairs of the demo set."""
    path = Path(__file__).resolve().parents[2] / "pipeline" / "demo" / "pairs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [_row(json.loads(line)) for line in lines]


def hh_pairs(data: Path, count: int) -> list[Row]:
    """The first HH pairs whose dialogues differ in the last turn only, neither of which is empty."""
    rows: list[Row] = []
    with gzip.open(data / "hh_harmless.jsonl.gz", "rt", encoding="utf-8") as lines:
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
