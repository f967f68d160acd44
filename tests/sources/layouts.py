"""Pairs of our own and how each known format would write them: the other direction of pipeline.sources."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from hypothesis import strategies as st


def turn(role, content):
    return {"role": role, "content": content}


def pair(prompt="How tall is a giraffe?", chosen="Up to 5.5 metres.", rejected="Giraffes eat leaves."):
    return {
        "prompt": [turn("user", prompt)],
        "chosen": [turn("assistant", chosen)],
        "rejected": [turn("assistant", rejected)],
    }


LONG_PAIR = {
    "prompt": [
        turn("system", "Answer in one line."),
        turn("user", "Name a river."),
        turn("assistant", "The Elbe."),
        turn("user", "And a longer one? Größer, 更长的."),
    ],
    "chosen": [turn("assistant", "The Danube.")],
    "rejected": [turn("assistant", "No.")],
}


def as_messages(p):
    return dict(p)


def as_implicit(p):
    return {"chosen": p["prompt"] + p["chosen"], "rejected": p["prompt"] + p["rejected"]}


def as_binarized(p):
    return {"prompt": p["prompt"][-1]["content"], **as_implicit(p)}


def as_repeating(p):
    return {"prompt": p["prompt"], **as_implicit(p)}


def as_strings(p):
    text = {side: p[side][0]["content"] for side in ("chosen", "rejected")}
    system = {"system": p["prompt"][0]["content"]} if p["prompt"][0]["role"] == "system" else {}
    return {"prompt": p["prompt"][-1]["content"], **text, **system}


def as_transcript(p):
    speaker = {"user": "Human", "assistant": "Assistant"}

    def written(turns):
        return "".join(f"\n\n{speaker[t['role']]}: {t['content']}" for t in turns)

    return {side: written(p["prompt"] + p[side]) for side in ("chosen", "rejected")}


def as_candidates(p, texts="all_generated_responses", scores="all_rm_scores"):
    chosen, rejected = p["chosen"][-1]["content"], p["rejected"][-1]["content"]
    return {"prompt": p["prompt"], texts: [rejected, chosen], scores: [-1.5, 2.25]}


def as_responses(p):
    return as_candidates(p, "responses", "rewards")


def as_rated(p):
    return {**as_strings(p), "order": ["chosen", "rejected"], "rating": [9.0, 4.0]}


def as_compared(p):
    answers = {"response_a": p["rejected"][0]["content"], "response_b": p["chosen"][0]["content"]}
    return {"context": p["prompt"], **answers, "winner": "model_b", "score_a": -1.5, "score_b": 2.25}


def as_judged(p):
    return as_candidates(p, "generations", "ratings")


ANY_TURNS = {"messages": as_messages, "implicit": as_implicit, "binarized": as_binarized, "repeating": as_repeating}
PICKED = {"candidates": as_candidates, "responses": as_responses, "judged": as_judged, "compared": as_compared}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda t: t.strip() != "")
said = texts.map(str.strip).filter(lambda t: "Human:" not in t and "Assistant:" not in t)


@st.composite
def pairs(draw, content=texts, system=True):
    """Any pair: maybe a system turn, some turns of history, and two different answers."""
    prompt = [turn("system", draw(content))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        prompt += [turn("user", draw(content)), turn("assistant", draw(content))]
    prompt.append(turn("user", draw(content)))
    chosen, rejected = draw(st.lists(content, min_size=2, max_size=2, unique=True))
    return {"prompt": prompt, "chosen": [turn("assistant", chosen)], "rejected": [turn("assistant", rejected)]}


def write_jsonl(path: Path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_jsonl_gz(path: Path, rows):
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))


def write_jsonl_zst(path: Path, rows):
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(data)


def write_parquet(path: Path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=40, write_page_checksum=True)


def write_arrow(path: Path, table, new, **options):
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=30)


def write_arrow_stream(path: Path, rows):
    write_arrow(path, pa.Table.from_pylist(rows), pa.ipc.new_stream)


def write_arrow_file(path: Path, rows):
    write_arrow(path, pa.Table.from_pylist(rows), pa.ipc.new_file)


ARROW = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}
WRITERS = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_jsonl_gz,
    "a.json.zst": write_jsonl_zst,
    "a.parquet": write_parquet,
    "stream.arrow": write_arrow_stream,
    "file.arrow": write_arrow_file,
    "a.feather": write_arrow_file,
}
