"""A malformed row is dropped with a stable reason, and never ends a run."""

import json
from dataclasses import replace
from functools import reduce

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import drops
from pipeline.config import Prompts, Source
from pipeline.drops import DropRow, Reason
from pipeline.errors import TemporaryError
from pipeline.selfplay.seeds import read_prompts
from pipeline.sources.formats import FORMATS
from pipeline.sources.inspect import inspect_source
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

P = to.pair()
MEDIA = {"images": ["a.jpg"], "image": {"bytes": b"x", "path": None}, "audio": {"path": "a.wav"}, "video": "a.mp4"}
IMAGE = [{"role": "user", "content": [{"type": "image", "image": "b64"}]}]
PICK = {"prompt": "p", "all_generated_responses": ["a", "b"]}
AB = {"prompt": "p", "response_a": "x", "response_b": "y"}
LOOK_UP = {**to.as_implicit(P), "all_generated_responses": ["a", "b"], "all_rm_scores": [1.0, 2.0]}


def with_calls(calls):
    return [{"role": "assistant", "content": "x", "tool_calls": calls}]


def nested(depth):
    """Tools as JSON text whose lists and objects lie in each other `depth` times, in each way that rows hold them."""
    lists = '{"a": ' + "[" * depth + "]" * depth + "}"
    objects = '{"a": ' * depth + "1" + "}" * depth
    return f"[{lists}]", [lists], f"[{objects}]", [objects]


CONVERT_CASES = [
    ("messages", {**P, "prompt": None}, "null_field"),
    ("messages", {"prompt": P["prompt"], "chosen": P["chosen"]}, "null_field"),
    ("messages", {**P, "chosen": [{"role": "assistant", "content": None}]}, "null_field"),
    ("messages", {**P, "chosen": [{"role": None, "content": "x"}]}, "null_field"),
    ("messages", {**P, "chosen": [None]}, "null_field"),
    ("messages", {**P, "chosen": 7}, "wrong_type"),
    ("messages", {**P, "chosen": ["text"]}, "wrong_type"),
    ("messages", {**P, "chosen": [to.turn("assistant", 3)]}, "wrong_type"),
    ("binarized", to.as_repeating(P), "wrong_type"),
    ("messages", {**P, "chosen": [to.turn("robot", "x")]}, "wrong_roles"),
    ("messages", {**P, "chosen": [to.turn("user", "x")]}, "wrong_roles"),
    ("messages", {**P, "prompt": P["prompt"] + [to.turn("assistant", "x")]}, "wrong_roles"),
    ("messages", {**P, "prompt": [to.turn("system", "x")]}, "wrong_roles"),
    ("implicit", {"chosen": P["chosen"], "rejected": P["rejected"]}, "empty_prompt"),
    ("messages", {**P, "prompt": []}, "empty_prompt"),
    ("messages", {**P, "prompt": [to.turn("user", " \n")]}, "empty_prompt"),
    ("messages", {**P, "prompt": [*to.LONG_PAIR["prompt"][:-1], to.turn("user", "")]}, "empty_prompt"),
    ("messages", {**P, "chosen": []}, "empty_response"),
    ("messages", {**P, "rejected": [to.turn("assistant", "\t")]}, "empty_response"),
    ("implicit", {**to.as_implicit(P), "rejected": []}, "empty_response"),
    ("transcript", to.as_transcript(to.pair(chosen="")), "empty_response"),
    ("messages", {**P, "rejected": P["chosen"]}, "identical_responses"),
    ("implicit", {**to.as_implicit(P), "rejected": to.as_implicit(P)["chosen"]}, "identical_responses"),
    ("messages", {**P, "chosen": [{**P["chosen"][0], "function_call": {"name": "x"}}]}, "unsupported_content"),
    *(("messages", {**P, name: value}, "unsupported_content") for name, value in MEDIA.items()),
    ("strings", {"prompt": "x", "chosen": "y", "rejected": "z", "image": "a.jpg"}, "unsupported_content"),
    ("messages", {**P, "chosen": with_calls("{not json")}, "invalid_tool_calls"),
    ("messages", {**P, "chosen": with_calls({"name": "x"})}, "invalid_tool_calls"),
    ("messages", {**P, "chosen": [{"role": "assistant", "content": "x", "reasoning_content": 3}]}, "wrong_type"),
    ("messages", {**P, "chosen": [{"role": "assistant", "content": None, "tool_call_id": "x"}]}, "null_field"),
    ("messages", {**P, "chat_template_kwargs": "{not json"}, "invalid_template_kwargs"),
    ("messages", {**P, "chat_template_kwargs": {"add_generation_prompt": True}}, "invalid_template_kwargs"),
    ("messages", {**P, "prompt": IMAGE}, "unsupported_content"),
    ("messages", {**P, "tools": "{not json"}, "invalid_tools"),
    ("messages", {**P, "tools": '{"name": "x"}'}, "invalid_tools"),
    ("messages", {**P, "tools": ["x"]}, "invalid_tools"),
    ("messages", {**P, "tools": 3}, "invalid_tools"),
    *(("messages", {**P, "tools": text}, "invalid_tools") for depth in (600, 900, 100_000) for text in nested(depth)),
    ("messages", {**P, "tools": [reduce(lambda inner, _: {"a": inner}, range(900), {})]}, "invalid_tools"),
    ("messages", to.pair(chosen="\ud800"), "undecodable_text"),
    ("strings", {"prompt": "\udfff", "chosen": "a", "rejected": "b"}, "undecodable_text"),
    ("transcript", {"chosen": "No speaker.", "rejected": "\n\nHuman: x\n\nAssistant: y"}, "not_a_transcript"),
    ("scored", {**P, "status": "dropped"}, "dropped_before"),
    ("candidates", {**PICK, "all_rm_scores": [1.0, 1.0]}, "tied_rewards"),
    ("candidates", {**PICK, "all_rm_scores": [1.0]}, "candidate_count_mismatch"),
    ("candidates", {**PICK, "all_rm_scores": [1.0, None]}, "null_score"),
    ("candidates", {**PICK, "all_rm_scores": None}, "null_score"),
    ("candidates", {**PICK, "all_rm_scores": [1.0, float("nan")]}, "non_finite_score"),
    ("candidates", {**PICK, "all_rm_scores": [1.0, "2"]}, "wrong_type"),
    ("candidates", {"prompt": "p", "all_rm_scores": [1.0]}, "null_field"),
    ("candidates", {**PICK, "all_generated_responses": ["a"], "all_rm_scores": [1.0]}, "too_few_candidates"),
    ("candidates", {**PICK, "all_generated_responses": ["a", ""], "all_rm_scores": [2, 1]}, "empty_response"),
    ("candidates", {**LOOK_UP, "chosen": None}, "null_field"),
    ("rated", {**to.as_rated(P), "rating": [7.0, 7.0]}, "tied_rewards"),
    ("compared", {**AB, "winner": "tie (bothbad)"}, "tie"),
    ("compared", {**AB, "winner": "model_c"}, "unknown_label"),
    ("compared", {**AB, "labels": 1}, "unknown_label"),
    ("compared", {**AB, "winner": None}, "null_field"),
    ("compared", {**AB, "score_a": 2, "score_b": 2}, "tie"),
    ("compared", {**AB, "score_a": 2, "score_b": None}, "null_score"),
    ("answers", {"prompt": "p", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}, "tied_rewards"),
    ("answers", {"prompt": "p", "answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]}, "null_score"),
    ("answers", {"prompt": "p", "answers": [{"answer": "a", "score": 1}]}, "too_few_candidates"),
    ("answers", {"prompt": "p", "answers": ["a", "b"]}, "wrong_type"),
    ("answers", {"prompt": "p", "answers": None}, "null_field"),
    ("unpaired", {"prompt": "p", "completion": "a", "label": True}, "lone_answer"),
    ("openai", {"input": None, "preferred_output": P["chosen"], "non_preferred_output": P["rejected"]}, "null_field"),
    ("strings", {**to.as_strings(P), "history": [["asked"]]}, "wrong_type"),
]


@pytest.mark.parametrize(("name", "row", "reason"), CONVERT_CASES)
def test_row_is_dropped_with_its_reason(name, row, reason):
    with pytest.raises(DropRow) as dropped:
        FORMATS[name].convert(row)
    assert dropped.value.reason == Reason(reason)


def outcomes(folder, source=None, **wanted):
    fs = fsspec.filesystem("file")
    flags = {"rewards": False, "policy_logps": False, "reference_logps": False, **wanted}
    reader, files = open_source(fs, str(folder), source or Source(path=str(folder)), **flags)
    return [row for shard in plan_shards(files, 3) for row in reader.read(shard).to_pylist()]


def test_tools_may_be_nested_and_lose_their_nulls():
    for tools in nested(450):
        kept = FORMATS["messages"].convert({**P, "tools": tools})
        assert json.loads(kept.tools) == json.loads(tools if isinstance(tools, str) else f"[{tools[0]}]")
    tools = [{"name": "f", "strict": None, "of": [None, {"x": None, "y": 0}]}]
    for given in (tools, json.dumps(tools), [json.dumps(tool) for tool in tools]):
        kept = FORMATS["messages"].convert({**P, "tools": given})
        assert kept.tools == '[{"name":"f","of":[null,{"y":0}]}]'


@pytest.mark.parametrize("error", [RecursionError("secret"), MemoryError("secret"), ZeroDivisionError("secret")])
def test_unforeseen_error_on_a_row_drops_it_alone_and_is_told_once(tmp_path, monkeypatch, caplog, error):
    strings = FORMATS["strings"]

    def build(row):
        if row["prompt"] == "bad":
            raise error
        return strings.build(row)

    monkeypatch.setitem(FORMATS, "strings", replace(strings, build=build))
    monkeypatch.setattr(drops, "_told", set())
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in ("p", "bad", "q", "bad")]
    to.write_jsonl(tmp_path / "a.jsonl", rows)
    found = outcomes(tmp_path)
    assert [row["drop_reason"] for row in found] == [None, "row_error"] * 2
    assert [row["drop_stage"] for row in found] == [None, "source"] * 2
    (told,) = [record.getMessage() for record in caplog.records]
    assert type(error).__name__ in told
    assert "a.jsonl:1" in told
    assert "secret" not in told
    fs, path = fsspec.filesystem("file"), str(tmp_path)
    assert read_prompts(fs, path, Prompts(path=path, format="strings")).dropped == {"row_error": 2}
    assert inspect_source(fs, path).drop_reasons == {"row_error": 2}


def test_an_error_of_ours_is_no_fault_of_the_row(tmp_path, monkeypatch):
    def build(_):
        raise TemporaryError("terminated")

    monkeypatch.setitem(FORMATS, "strings", replace(FORMATS["strings"], build=build))
    to.write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(TemporaryError):
        outcomes(tmp_path)


LOGPS = {
    "policy_logp_chosen": -3.5,
    "policy_logp_rejected": -4.0,
    "num_tokens_chosen": 2,
    "num_tokens_rejected": 3,
}
SCORED = {**P, **LOGPS, "score_chosen": 2.0, "score_rejected": 1.0}
JSON_CASES = [
    ({**SCORED, "score_chosen": None}, "null_score"),
    ({**SCORED, "score_chosen": float("nan")}, "non_finite_score"),
    ({**SCORED, "score_rejected": float("-inf")}, "non_finite_score"),
    ({**SCORED, "score_rejected": 10**400}, "non_finite_score"),
    ({**SCORED, "score_chosen": "2"}, "wrong_type"),
    ({**SCORED, "score_chosen": True}, "wrong_type"),
    ({**SCORED, "policy_logp_chosen": None}, "null_score"),
    ({**SCORED, "policy_logp_chosen": 3.5}, "positive_logp"),
    ({**SCORED, "num_tokens_chosen": 0}, "invalid_token_count"),
    ({**SCORED, "num_tokens_chosen": 1.5}, "invalid_token_count"),
    ({**SCORED, "num_tokens_chosen": 1e300}, "invalid_token_count"),
    ({**SCORED, "truncated": "no"}, "wrong_type"),
    ({**SCORED, "key": None}, "null_id"),
    ({**SCORED, "key": ""}, "null_id"),
    ({**SCORED, "key": 1.5}, "id_type"),
    ({**SCORED, "key": True}, "id_type"),
    ({**SCORED, "key": "\ud800"}, "undecodable_text"),
    ({**SCORED, "lang": 3}, "passthrough_type"),
    ({**SCORED, "lang": "\ud800"}, "undecodable_text"),
    ({**SCORED, "year": 2**70}, "passthrough_type"),
    ({**SCORED, "chosen": "\ud800"}, "undecodable_text"),
    ([1, 2], "invalid_json"),
]


@pytest.mark.parametrize(("bad", "reason"), JSON_CASES)
def test_json_row_is_dropped_alone_with_its_reason(tmp_path, bad, reason):
    good = [{**SCORED, "key": n, "lang": "de", "year": 2020, "truncated": False} for n in range(3)]
    bad = {**good[0], "key": "bad", **bad} if isinstance(bad, dict) else bad
    to.write_jsonl(tmp_path / "a.jsonl", [])
    lines = [json.dumps(row) for row in (good[0], good[1], bad, good[2])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = Source(path="s", id_column="key", passthrough=("lang", "year"))
    rows = outcomes(tmp_path, source, rewards=True, policy_logps=True)
    assert [row["status"] for row in rows] == ["kept", "kept", "dropped", "kept"]
    assert (rows[2]["drop_stage"], rows[2]["drop_reason"]) == ("source", reason)
    assert [row["id"] for row in rows if row["status"] == "kept"] == ["0", "1", "2"]
    assert rows[2]["chosen"] is rows[2]["reward_chosen"] is rows[2]["lang"] is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "p\xff\xfe", "chosen": "a", "rejected": "b"}', "undecodable_text"),
        (b'{"prompt": "p", "chosen": ', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"null", "invalid_json"),
    ],
)
def test_line_that_is_no_json_object_is_dropped_in_place(tmp_path, line, reason):
    good = b'{"prompt": "p", "chosen": "a", "rejected": "b"}'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([good, b"", line, b"  ", good]))
    rows = outcomes(tmp_path)
    assert [row["drop_reason"] for row in rows] == [None, reason, None]
    assert [row["source_row"] for row in rows] == [0, 1, 2]
    assert rows[1]["id"] is None


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"all_rm_scores": [1.0, 2.0]}, "score_not_found"),
        (
            {
                "all_generated_responses": ["Up to 5.5 metres."] * 2 + ["Giraffes eat leaves."],
                "all_rm_scores": [1, 2, 0],
            },
            "ambiguous_score",
        ),
    ],
)
def test_pair_without_one_candidate_score_is_dropped_only_if_rewards_are_wanted(tmp_path, scores, reason):
    to.write_jsonl(tmp_path / "a.jsonl", [{**LOOK_UP, **scores}])
    assert outcomes(tmp_path, rewards=True)[0]["drop_reason"] == reason
    assert outcomes(tmp_path, rewards=False)[0]["status"] == "kept"


def test_parquet_text_that_is_no_utf8_is_dropped_in_place(tmp_path):
    texts = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    fine = pa.array(["x", "y", "z"])
    pq.write_table(pa.table({"prompt": fine, "chosen": texts, "rejected": fine}), tmp_path / "a.parquet")
    assert [row["drop_reason"] for row in outcomes(tmp_path)] == [None, "undecodable_text", None]


def in_turns(texts):
    turns = pa.StructArray.from_arrays([pa.array(["assistant"] * 3), texts], names=["role", "content"])
    return pa.ListArray.from_arrays([0, 1, 2, 3], turns)


@pytest.mark.parametrize("container", to.ARROW)
@pytest.mark.parametrize("column", [lambda t: t, in_turns, lambda t: pa.DictionaryArray.from_arrays([0, 1, 2], t)])
def test_arrow_text_that_is_no_utf8_is_dropped_in_place(tmp_path, container, column):
    texts = column(pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string()))
    prompts = in_turns(pa.array(["x"] * 3)) if pa.types.is_list(texts.type) else pa.array(["x"] * 3)
    table = pa.table({"prompt": ["x"] * 3, "chosen": texts, "rejected": prompts})
    to.write_arrow(tmp_path / "a.arrow", table, to.ARROW[container])
    assert [row["drop_reason"] for row in outcomes(tmp_path)] == [None, "undecodable_text", None]


def test_time_that_python_cannot_hold_is_dropped_in_place(tmp_path):
    days = pa.array([1, 2**31 - 1], pa.int32()).view(pa.date32())
    table = pa.table({"prompt": ["x"] * 2, "chosen": ["y"] * 2, "rejected": ["z"] * 2, "tools": days})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["drop_reason"] for row in outcomes(tmp_path)] == ["invalid_tools", "wrong_type"]


def test_parquet_passthrough_that_is_no_utf8_is_dropped_in_place(tmp_path):
    texts = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    table = pa.table({"prompt": ["x"] * 3, "chosen": ["y"] * 3, "rejected": ["z"] * 3, "tag": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = outcomes(tmp_path, Source(path="s", passthrough=("tag",)))
    assert [row["drop_reason"] for row in rows] == [None, "undecodable_text", None]
    assert [row["tag"] for row in rows] == ["a", None, "c"]


def test_every_reason_has_a_case():
    files = {"score_not_found", "ambiguous_score", "row_error", "late_field"}
    covered = {reason for *_, reason in CONVERT_CASES} | {reason for _, reason in JSON_CASES} | files
    faults = {str(reason) for reason in Reason if "source" in reason.stages and not reason.by_rule}
    assert covered == faults - {"duplicate_prompt"}
