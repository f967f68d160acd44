"""Pairs made of whole columns are those that the rows give one by one, in every byte."""

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from pipeline.config import Source
from pipeline.errors import SourceError
from pipeline.sources import reader as readers
from pipeline.sources.column_pairs import NotPlain
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

FS = fsspec.filesystem("file")
ODD_TEXTS = [
    "",
    " \n",
    "\u3000",
    "\x1c",
    "\u200b",
    "é",
    "中文",
    'say "\\n"',
    "a\tb\r\n\x00\x1f\x7f",
    "\u2028",
    "🙂",
    " x",
]
TEXT = st.sampled_from(["Hi", "Yes.", "No.", *ODD_TEXTS]) | st.text(max_size=6)
ROLE = st.sampled_from(["user", "assistant"] * 4 + ["system", "tool", "developer", "narrator", None])
TURN = st.fixed_dictionaries(
    {"role": ROLE, "content": st.none() | TEXT, "name": st.none() | TEXT, "thinking": st.sampled_from([None, "", "hm"])}
) | st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant"]), TEXT)
TURNS = st.none() | st.lists(st.none() | TURN, max_size=4)
PROMPT = st.lists(TURN, min_size=1, max_size=2)
NUMBER = st.sampled_from([1.0, 2.0, 3.0]) | st.sampled_from(
    [None, 0.0, -0.0, -1.5, 3.0, 1e-4, 2.0**41, float("nan"), float("inf")]
)
MESSAGES = pa.list_(pa.struct([(name, pa.string()) for name in ("name", "role", "content", "thinking")]))
SCORES = {name: pa.float64() for name in ("reward_chosen", "reward_rejected", "margin")}
LOGPS = {name: pa.float32() for name in ("policy_logp_chosen", "policy_logp_rejected")}
COUNTS = {name: pa.float64() for name in ("num_tokens_chosen", "num_tokens_rejected")}


@st.composite
def dialogues(draw):
    """Chosen and rejected that go on from the same turns, mostly."""
    head = draw(st.none() | PROMPT) or []
    answer = st.builds(lambda text: [{"role": "assistant", "content": text}], TEXT)
    sides = [[*head, *draw(answer)] if draw(st.integers(0, 3)) else draw(TURNS) for _ in range(2)]
    return {"prompt": head or None, "chosen": sides[0], "rejected": sides[1]}


MESSAGE_ROWS = dialogues()
IMPLICIT_ROWS = dialogues().map(lambda row: {side: row[side] for side in ("chosen", "rejected")})
BINARIZED_ROWS = st.builds(lambda row, text: {**row, "prompt": text}, dialogues(), st.none() | TEXT)
STRING_ROWS = st.fixed_dictionaries(
    {name: st.none() | TEXT for name in ("prompt", "instruction", "input", "system", "chosen", "rejected")}
)
CANDIDATES = st.lists(st.none() | st.sampled_from(["Hi", "Hi", " Hi", "Yes.", "No."]), max_size=4)
CANDIDATE_ROWS = st.builds(
    lambda row, texts, scores, fit: {
        **row,
        "all_generated_responses": texts,
        "all_rm_scores": scores[: len(texts)] if fit and scores and texts else scores,
        **({} if not fit or not texts or not all(texts) else {
            side: [{"role": "assistant", "content": text}]
            for side, text in (("chosen", texts[0]), ("rejected", texts[-1]))
        }),
    },
    st.fixed_dictionaries({"prompt": st.just("Hi?") | st.none() | TEXT, "chosen": TURNS, "rejected": TURNS}),
    st.none() | CANDIDATES,
    st.none() | st.lists(NUMBER, max_size=4),
    st.integers(0, 4).map(bool),
)  # fmt: skip
ANSWER_ROWS = st.fixed_dictionaries({"prompt": TURNS, "chosen": st.none() | TEXT, "rejected": st.none() | TEXT})
LAYOUTS = {
    "messages": (MESSAGE_ROWS, {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}),
    "answers": (ANSWER_ROWS, {"prompt": MESSAGES, "chosen": pa.string(), "rejected": pa.string()}),
    "implicit": (IMPLICIT_ROWS, {"chosen": MESSAGES, "rejected": MESSAGES}),
    "binarized": (BINARIZED_ROWS, {"prompt": pa.string(), "chosen": MESSAGES, "rejected": MESSAGES}),
    "candidates": (
        CANDIDATE_ROWS,
        {
            "prompt": pa.string(),
            "chosen": MESSAGES,
            "rejected": MESSAGES,
            "all_generated_responses": pa.list_(pa.string()),
            "all_rm_scores": pa.list_(pa.float64()),
        },
    ),
    "strings": (
        STRING_ROWS,
        dict.fromkeys(("prompt", "instruction", "input", "system", "chosen", "rejected"), pa.string()),
    ),
}
EXTRA = {"key": pa.string(), "tools": pa.string(), "status": pa.string(), **SCORES, **LOGPS, **COUNTS}
BESIDE = st.fixed_dictionaries(
    {
        "key": st.none() | TEXT,
        "tools": st.sampled_from([None] * 5 + ["", "[]", '[{"name": "f"}]', "?"]),
        "status": st.sampled_from([None, "scored", "scored", "scored", "dropped"]),
        **dict.fromkeys((*SCORES, *LOGPS, *COUNTS), NUMBER),
    }
)


def refused(_):
    raise NotPlain


def both_ways(path, monkeypatch, **source):
    """The source's rows by columns, and one by one."""
    flags = {flag: bool(source.pop(flag, False)) for flag in ("rewards", "policy_logps")}
    reader, files = open_source(FS, str(path), Source(path=str(path), **source), **flags, reference_logps=False)
    shard = plan_shards(files, 1000)[0]
    by_columns = reader.read(shard)
    with monkeypatch.context() as patch:
        patch.setattr(readers, "plain_arrays", refused)
        return by_columns, reader.read(shard)


def spoiled(column, index):
    """The texts of a column, or of its turns, one of which is no UTF-8."""
    if isinstance(column.type, pa.ListType):
        turns = column.values
        if not isinstance(turns.type, pa.StructType):
            items = spoiled(turns, index) if pa.types.is_string(turns.type) else turns
            return pa.ListArray.from_arrays(column.offsets, items, type=column.type, mask=column.is_null())
        parts = [spoiled(part, index) if field.name == "content" else part
                 for field, part in zip(turns.type, turns.flatten(), strict=True)]  # fmt: skip
        items = pa.StructArray.from_arrays(parts, fields=list(turns.type), mask=turns.is_null())
        return pa.ListArray.from_arrays(column.offsets, items, type=column.type, mask=column.is_null())
    texts = [None if text is None else text.encode() for text in column.to_pylist()]
    if texts:
        texts[index % len(texts)] = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"][index % 4]
    return pa.array(texts, pa.binary()).view(pa.string())


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(
    max_examples=15, phases=[Phase.generate], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_columns_give_what_rows_give(layout, tmp_path, monkeypatch, data):
    row, types = LAYOUTS[layout]
    rows = data.draw(st.lists(st.builds(lambda own, beside: {**beside, **own}, row, BESIDE), min_size=1, max_size=12))
    names = [*types, *data.draw(st.sets(st.sampled_from([*EXTRA])))]
    schema = pa.schema([(name, types.get(name) or EXTRA[name]) for name in names])
    columns = [pa.array([each.get(name) for each in rows], schema.field(name).type) for name in names]
    for index, spoil in enumerate(data.draw(st.lists(st.integers(0, 60), min_size=len(names), max_size=len(names)))):
        if spoil < 2 and not pa.types.is_floating(columns[index].type):
            columns[index] = spoiled(columns[index], spoil + len(rows))
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "a.parquet")
    wanted = {
        "rewards": (not {"margin", "reward_chosen"}.isdisjoint(names) and "reward_rejected" in names)
        or "margin" in names,
        "policy_logps": {*LOGPS, *COUNTS} <= {*names},
        "id_column": "key" if "key" in names else None,
        "passthrough": ("key",) if "key" in names else (),
        "format": {"answers": "messages"}.get(layout, layout),
    }
    try:
        by_columns, by_rows = both_ways(tmp_path / "a.parquet", monkeypatch, **wanted)
    except SourceError:  # no row can be decoded
        reject()
    assert by_columns.schema.equals(by_rows.schema, check_metadata=True)
    assert repr(by_columns.to_pylist()) == repr(by_rows.to_pylist())


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("shape", [dict, to.as_strings, to.as_implicit])
def test_plain_rows_are_not_looked_at_one_by_one(tmp_path, monkeypatch, name, shape):
    to.WRITERS[name](tmp_path / name, [shape(to.pair(prompt=f"Question {n}?")) for n in range(50)])
    one_by_one = []
    monkeypatch.setattr(readers, "rows_of_columns", lambda table: one_by_one.extend(table.to_pylist()) or [])
    reader, files = open_source(
        FS, str(tmp_path), Source(path=str(tmp_path)), rewards=False, policy_logps=False, reference_logps=False
    )
    table = reader.read(plan_shards(files, 100)[0])
    assert table["status"].to_pylist() == ["kept"] * 50
    assert one_by_one == []
