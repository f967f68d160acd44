"""Names, message forms and roles of others give the same pairs, from JSON and from Parquet."""

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Source
from pipeline.errors import ConfigError, SchemaError
from pipeline.sources.open import open_source, read_all
from tests.sources import layouts as to

FS = fsspec.filesystem("file")
PAIRS = [{**to.pair(prompt=f"Question {n}?", chosen=f"Good {n}.", rejected=f"Bad {n}.")} for n in range(20)]
PAIRS += [to.LONG_PAIR]
OTHER_ROLE = {"user": "human", "assistant": "gpt", "system": "system"}


def renamed(turns, role="from", content="value", roles=OTHER_ROLE):
    return [{role: roles[t["role"]], content: t["content"]} for t in turns]


def lists(turns):
    return {"role": [t["role"] for t in turns], "content": [t["content"] for t in turns]}


def sharegpt(p):
    return {"conversations": renamed(p["prompt"]), **{side: renamed(p[side])[0] for side in ("chosen", "rejected")}}


# Each way to write a pair, with the names and roles that the config must give
FORMS = {
    "axolotl": (lambda p: {"messages": p["prompt"], "chosen": p["chosen"][0], "rejected": p["rejected"][0]}, {}),
    "axolotl-text": (lambda p: {"messages": p["prompt"], **texts(p)}, {}),
    "sharegpt": (sharegpt, {}),
    "sharegpt with system": (
        lambda p: {
            **sharegpt({**p, "prompt": [t for t in p["prompt"] if t["role"] != "system"]}),
            "system": next((t["content"] for t in p["prompt"] if t["role"] == "system"), None),
        },
        {},
    ),
    "dialogues with system": (
        lambda p: {
            **to.as_implicit({**p, "prompt": [t for t in p["prompt"] if t["role"] != "system"]}),
            "system": next((t["content"] for t in p["prompt"] if t["role"] == "system"), ""),
        },
        {},
    ),
    "swift": (lambda p: {"messages": p["prompt"] + p["chosen"], "rejected_response": texts(p)["rejected"]}, {}),
    "swift-messages": (
        lambda p: {"messages": p["prompt"] + p["chosen"], "rejected_messages": p["prompt"] + p["rejected"]},
        {},
    ),
    "nemo": (lambda p: {"prompt": p["prompt"], "chosen_response": p["chosen"], "rejected_response": p["rejected"]}, {}),
    "roles": (
        lambda p: {
            side: renamed(
                p["prompt"] + p[side], "role", "content", {"user": "Human", "assistant": "model", "system": "System"}
            )
            for side in ("chosen", "rejected")
        },
        {},
    ),
    "other roles": (
        lambda p: {
            side: renamed(
                p["prompt"] + p[side], "speaker", "text", {"user": "kunde", "assistant": "hilfe", "system": "system"}
            )
            for side in ("chosen", "rejected")
        },
        {"roles": {"kunde": "user", "hilfe": "assistant"}},
    ),
    "sequence": (lambda p: {side: lists(p["prompt"] + p[side]) for side in ("chosen", "rejected")}, {}),
    "sequence beside prompt": (lambda p: {name: lists(turns) for name, turns in p.items()}, {}),
    "one message each": (lambda p: {**p, "chosen": p["chosen"][0], "rejected": p["rejected"][0]}, {}),
    "dotted": (
        lambda p: {
            "task": {"dialogue": p["prompt"], "n": 1},
            "answers": {"good": p["chosen"], "bad": texts(p)["rejected"]},
        },
        {"columns": {"prompt": "task.dialogue", "chosen": "answers.good", "rejected": "answers.bad"}},
    ),
    "items of lists": (
        lambda p: {"task": [{"q": p["prompt"]}, None], "output": [*texts(p).values()]},
        {"columns": {"prompt": "task.0.q", "chosen": "output.0", "rejected": "output.1"}},
    ),
    "dots in names": (
        lambda p: {"a.q": p["prompt"], "a.b": {"c.d": p["chosen"]}, "r": p["rejected"]},
        {"columns": {"prompt": "a.q", "chosen": "a.b.c.d", "rejected": "r"}},
    ),
    "names of ours in other places": (
        lambda p: {"chosen": p["rejected"], "rejected": p["chosen"], "prompt": "no", "q": p["prompt"]},
        {"columns": {"prompt": "q", "chosen": "rejected", "rejected": "chosen"}},
    ),
}


def texts(p):
    return {side: p[side][0]["content"] for side in ("chosen", "rejected")}


def read(path, **source):
    return read_all(FS, str(path), Source(path=str(path), **source))


def pairs_of(table):
    return table.select(["prompt", "chosen", "rejected"]).to_pylist()


@pytest.mark.parametrize("container", ["a.jsonl", "a.parquet", "stream.arrow"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pairs(tmp_path, form, container):
    write, config = FORMS[form]
    to.WRITERS[container](tmp_path / container, [write(p) for p in PAIRS])
    assert pairs_of(read(tmp_path, **config)) == PAIRS


def test_broken_messages_cost_their_row_alone(tmp_path):
    good = sharegpt(PAIRS[0])
    rows = [
        good,
        {**good, "chosen": {"from": "stranger", "value": "x"}},
        {**good, "chosen": {"from": "gpt", "value": None}},
        {**good, "conversations": [*good["conversations"], None]},
        {**good, "chosen": None},
        {**good, "conversations": []},
        good,
    ]
    reasons = []
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / name[2:]).mkdir()
        to.WRITERS[name](tmp_path / name[2:] / name, rows)
        reasons.append(read(tmp_path / name[2:]).column("drop_reason").to_pylist())
    assert reasons[0] == [None, "wrong_roles", "null_field", "null_field", "null_field", "empty_prompt", None]
    assert reasons[1] == reasons[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_item_beyond_a_list_costs_its_row_alone(tmp_path, name):
    rows = [{"prompt": "q", "output": output} for output in (["a", "b"], ["a"], [], None, ["a", None], ["c", "d", "e"])]
    to.WRITERS[name](tmp_path / name, rows)
    table = read(tmp_path, columns={"chosen": "output.0", "rejected": "output.1"})
    assert table.column("drop_reason").to_pylist() == [None, *["null_field"] * 4, None]


def test_lists_of_unequal_length_cost_their_row_alone(tmp_path):
    rows = [{side: lists(p["prompt"] + p[side]) for side in ("chosen", "rejected")} for p in PAIRS[:3]]
    rows[1]["chosen"]["role"].pop()
    for name in ("a.jsonl", "a.parquet"):
        to.WRITERS[name](tmp_path / name, rows)
        table = read(tmp_path / name)
        assert table.column("status").to_pylist() == ["kept", "dropped", "kept"]


def test_scores_id_and_passthrough_go_by_their_new_names(tmp_path):
    rows = [
        {
            "q": f"Q{n}",
            "a": {"good": "x", "bad": "y"},
            "s": {"good": 2 * n, "bad": n},
            "meta": {"id": f"i{n}"},
            "l": "de",
        }
        for n in range(5)
    ]
    columns = {
        "prompt": "q",
        "chosen": "a.good",
        "rejected": "a.bad",
        "reward_chosen": "s.good",
        "reward_rejected": "s.bad",
        "key": "meta.id",
        "lang": "l",
    }
    for name in ("a.jsonl", "a.parquet"):
        to.WRITERS[name](tmp_path / name, rows)
        source = Source(path="x", columns=columns, id_column="key", passthrough=("lang", "l", "s"))
        reader, files = open_source(
            FS, str(tmp_path / name), source, rewards=True, policy_logps=False, reference_logps=False
        )
        table = reader.read(files[0].shard(0, 5))
        assert table.column("id").to_pylist() == [f"i{n}" for n in range(5)]
        assert table.column("reward_chosen").to_pylist() == [0, 2, 4, 6, 8]
        assert table.column("lang").to_pylist() == table.column("l").to_pylist() == ["de"] * 5


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_numbers_as_text_are_read_as_numbers(tmp_path, name):
    rows = [{**to.as_strings(PAIRS[n]), "chosen_score": f" {n}.5", "rejected_score": "1e-1"} for n in range(9)]
    rows[4]["chosen_score"] = "N/A"
    to.WRITERS[name](tmp_path / name, rows)
    source = Source(path="x")
    reader, files = open_source(FS, str(tmp_path), source, rewards=True, policy_logps=False, reference_logps=False)
    table = reader.read(files[0].shard(0, 9))
    assert table.column("reward_chosen").to_pylist() == [None if n == 4 else n + 0.5 for n in range(9)]
    assert table.column("drop_reason").to_pylist() == ["null_score" if n == 4 else None for n in range(9)]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"prompt": "questoin"}, SchemaError, r"prompt is to come from questoin, .* Did you mean question\?"),
        ({"prompt": "question.text"}, SchemaError, r"question\.text, which is not there"),
        ({"chosen": "a.god"}, SchemaError, r"Did you mean a\.good"),
        ({"choosen": "a.good"}, ConfigError, r"the name choosen, which nothing reads; chosen"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_wrong_map_is_refused_with_the_nearest_name(tmp_path, name, columns, error, message):
    to.WRITERS[name](tmp_path / name, [{"question": "q", "a": {"good": "x", "bad": "y"}}])
    with pytest.raises(error, match=message):
        read(tmp_path, columns=columns)


def test_a_run_without_a_map_keeps_its_fingerprint():
    assert not {"columns", "roles"} & Source(path="x").fingerprint().keys()
    assert Source(path="x", roles={"a": "user"}).fingerprint()["roles"] == {"a": "user"}


def test_columns_that_are_no_messages_are_left_alone(tmp_path):
    rows = [{**p, "note": {"from": "x", "value": "y"}} for p in PAIRS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path, passthrough=("note",)).column("note").to_pylist() == [row["note"] for row in rows]
