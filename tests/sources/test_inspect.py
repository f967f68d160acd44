"""Inspection tells what a source is, and never what its rows say."""

import json
from collections import Counter

import fsspec
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import Source
from pipeline.errors import ConfigError, SourceError
from pipeline.sources.inspect import Figures, inspect_source
from pipeline.sources.inspected import render
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

ASKED = to.pair()["prompt"][0]["content"]
BACKWARDS = {**to.pair(), "chosen": to.pair()["rejected"], "rejected": to.pair()["chosen"]}
FS = fsspec.filesystem("file")


def inspected(folder, rows, **kwargs):
    to.write_jsonl(folder / "a.jsonl", rows)
    return inspect_source(FS, str(folder), **kwargs)


def test_shapes_lengths_scores_and_drops_are_counted(tmp_path):
    rows = [to.pair(prompt="x" * n) for n in range(1, 101)]
    rows += [{**to.LONG_PAIR, "tools": [{"name": "f"}]}, {**to.pair(), "rejected": None}]
    rows = [{**row, "score_chosen": 1.0, "score_rejected": 0.5} for row in rows]
    found = inspected(tmp_path, rows)
    assert (found.format, found.num_files, found.num_rows, found.num_sampled, found.num_pairs) == (
        ("messages", 1, 102, 102, 101)
    )  # fmt: skip
    assert found.num_chars["prompt"] == Figures(least=1, median=51, p95=95, most=100)
    assert found.num_turns["prompt"] == Figures(least=1, median=1, p95=1, most=4)
    assert (found.num_with_system, found.num_with_tools) == (1, 1)
    assert found.drop_reasons == {"null_field": 1}
    assert found.score_columns == ("score_chosen", "score_rejected")
    assert found.problems == ()


def test_sample_size_bounds_what_is_looked_at(tmp_path):
    found = inspected(tmp_path, [to.pair(prompt=str(n)) for n in range(50)], sample_rows=9)
    assert (found.num_rows, found.num_sampled) == (50, 9)


def test_text_of_rows_is_never_shown(tmp_path):
    secret = to.pair("prompt-canary", "chosen-canary", "rejected-canary")
    for row in (secret, to.as_strings(secret), to.as_transcript(secret), {"text": "canary"}):
        assert "canary" not in render(inspected(tmp_path, [row, {**row, "chosen": 3}]))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"text": "x"}], "of no known format"),
        ([{**to.as_transcript(to.pair()), "prompt": "x"}], "strings or transcript"),
        ([to.pair()] * 3, "2 pairs of the sample repeat an earlier one"),
        ([{**to.as_binarized(to.pair()), "prompt": "another"}], "in 1 sampled rows the prompt text is no turn"),
        (
            [to.pair(chosen=f"{ASKED}\n1"), to.pair(rejected=f" {ASKED} 2"), to.pair()],
            "in 2 pairs of the sample an answer",
        ),
        ([to.pair(), to.pair(), BACKWARDS, to.pair(prompt="?")], "3 pairs of the sample hold two answers that another"),
        ([{**to.pair(), "functions": ["f"]}], "column functions (tools) is not read by format messages"),
        ([{**to.as_implicit(to.pair()), "initial_reason_steps": "s"}], "(the beginning of both answers) is not read"),
        ([{**to.as_strings(to.pair()), "history": "text"}], "column history (what was said before the prompt) is not"),
        ([{**to.pair(), "rejected": to.pair()["chosen"]}], "no row of the sample yields a pair"),
        (
            [{**to.pair(), "score_chosen": 1, "score_rejected": 0, "chosen_rating": 1, "rejected_rating": 0}],
            "2 spellings of rewards",
        ),
    ],
)
def test_problem_is_told(tmp_path, rows, problem):
    found = inspected(tmp_path, rows)
    assert problem in "\n".join(found.problems)
    assert problem in render(found)


def test_bad_files_are_an_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(SourceError, match="0 bytes"):
        inspect_source(FS, str(tmp_path))


def test_rows_whose_scores_a_run_would_refuse_are_counted_as_dropped(tmp_path):
    good = {**to.pair(prompt="1"), "score_chosen": 1.0, "score_rejected": 0.5}
    rows = [good, {**good, "score_chosen": None}, {**good, "score_rejected": float("nan")}, good]
    found = inspected(tmp_path, rows)
    assert found.drop_reasons == {"non_finite_score": 1, "null_score": 1}
    flags = {"rewards": True, "policy_logps": False, "reference_logps": False}
    reader, files = open_source(FS, str(tmp_path), Source(path=str(tmp_path)), **flags)
    table = reader.read(plan_shards(files, 10)[0])
    assert found.drop_reasons == Counter(reason for reason in table["drop_reason"].to_pylist() if reason)


def test_candidates_that_give_no_score_are_counted_as_dropped(tmp_path):
    good = {**to.pair(), **to.as_candidates(to.pair())}
    texts = good["all_generated_responses"]
    other = {**good, "all_generated_responses": [f"{text} or not" for text in texts]}
    assert inspected(tmp_path, [good, other]).drop_reasons == {"score_not_found": 1}


def test_scores_of_two_answers_are_shown_and_checked(tmp_path):
    row = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 2, "score_B": 1}
    found = inspected(tmp_path, [row, {**row, "score_B": None}, {**row, "score_B": float("nan")}])
    assert (found.format, found.score_columns) == ("compared", ("score_A", "score_B"))
    assert found.drop_reasons == {"non_finite_score": 1, "null_score": 1}


def test_log_probs_of_the_source_are_checked(tmp_path):
    scores = {"policy_logp_chosen": -1.0, "policy_logp_rejected": -2.0}
    good = {**to.pair(), **scores, "num_tokens_chosen": 1, "num_tokens_rejected": 1}
    found = inspected(tmp_path, [good, {**good, "policy_logp_chosen": 1.0}, {**good, "num_tokens_chosen": 0}])
    assert found.drop_reasons == {"invalid_token_count": 1, "positive_logp": 1}


def test_files_of_no_known_extension_are_named(tmp_path, caplog):
    for name in ("b.xlsx", "sub/c.jsonl.bak"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in ("README", "NOTES.md", "LICENSE", "_SUCCESS", ".hidden", "run.json"):
        (tmp_path / name).write_text("x")
    found = inspected(tmp_path, [to.pair()])
    assert found.ignored == ("b.xlsx", "sub/c.jsonl.bak")
    line = "2 files of no known extension: b.xlsx, sub/c.jsonl.bak"
    assert f"ignored   {line}" in render(found)
    assert found.problems == (f"ignored {line}",)
    open_source(FS, str(tmp_path), Source(path=str(tmp_path)), rewards=False, policy_logps=False, reference_logps=False)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", f"source {tmp_path}: ignored {line}")
    ]


def test_split_is_shown_and_chosen(tmp_path):
    to.write_jsonl(tmp_path / "train.jsonl", [to.pair()])
    to.write_jsonl(tmp_path / "test.jsonl", [to.pair(), to.pair(prompt="Another?")])
    told = CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout
    assert "split     train (1 file); not read: test (1 file)\n" in told
    found = inspect_source(FS, str(tmp_path), source=Source(path=str(tmp_path), split="test"))
    assert (found.split, found.splits, found.num_rows) == ("test", {"train": 1, "test": 1}, 2)
    assert "rows      2\n" in CliRunner().invoke(app, ["inspect", str(tmp_path), "--split", "test"]).stdout


def test_without_a_format_no_pairs_are_claimed(tmp_path):
    found = inspected(tmp_path, [{"text": "x"}])
    assert found.format is None
    assert "pairs not counted: no format" in render(found)
    assert "0 pairs" not in render(found)
    assert "dropped" not in render(found)


def test_inspect_command_ends_with_2_where_no_format_fits(tmp_path):
    to.write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    to.write_jsonl(tmp_path / "b.jsonl", [to.pair()])
    runs = [CliRunner().invoke(app, ["inspect", str(tmp_path / name)]) for name in ("a.jsonl", "b.jsonl")]
    assert [run.exit_code for run in runs] == [2, 0]
    assert "of no known format" in runs[0].output


def test_inspect_command_repeats_no_credentials():
    options = ["--anonymous", "--region", "eu-west-1", "--endpoint-url", "http://a:canary@h"]
    run = CliRunner().invoke(app, ["inspect", "s3://bucket/x", *options])
    assert isinstance(run.exception, ConfigError)
    assert "--endpoint-url must not carry credentials" in str(run.exception)
    assert "canary" not in f"{run.exception}{run.output}"


def test_roles_to_name_are_shown(tmp_path):
    names = {"user": "kunde", "assistant": "hilfe"}
    rows = [
        {side: [to.turn(names[turn["role"]], turn["content"]) for turn in turns] for side, turns in p.items()}
        for p in (to.pair(), to.pair(chosen="x"))
    ]
    (problem,) = (problem for problem in inspected(tmp_path, rows).problems if "roles" in problem)
    assert "  roles: {hilfe: assistant, kunde: user}" in problem


def command(*words: str):
    return CliRunner().invoke(app, ["inspect", *words])


def test_command_ends_with_2_without_a_pair_and_with_3_where_too_many_rows_drop(tmp_path):
    good, bad = to.pair(), {**to.pair(), "chosen": None}
    for folder, rows in (("good", [good]), ("some", [good, bad]), ("none", [bad]), ("unknown", [{"text": "x"}])):
        (tmp_path / folder).mkdir()
        to.write_jsonl(tmp_path / folder / "a.jsonl", rows)
    codes = [command(str(tmp_path / name)).exit_code for name in ("good", "some", "none", "unknown")]
    assert codes == [0, 3, 2, 2]
    assert command(str(tmp_path / "some"), "--max-dropped", "0.5").exit_code == 0


def test_command_shows_pairs_only_where_they_are_asked_for_and_everything_as_json(tmp_path, tiny_model_dir):
    rows = [{"q": "asked", "good": "yes", "bad": "no", "meta": {"g": 2, "b": 1}}, {"q": "x", "good": None, "bad": "no"}]
    to.write_jsonl(tmp_path / "a.jsonl", rows)
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    columns |= {"reward_chosen": "meta.g", "reward_rejected": "meta.b"}
    keys = [word for name, place in columns.items() for word in ("--set", f"columns.{name}={place}")]
    words = [str(tmp_path), *keys, "--max-dropped", "1"]
    assert "asked" not in command(*words).stdout
    shown = command(*words, "--show", "1", "--tokenizer", str(tiny_model_dir())).stdout
    assert "user: asked" in shown
    assert "chosen (reward 2)" in shown
    assert "\ntokens " in shown
    found = json.loads(command(*words, "--show", "5", "--json").stdout)
    assert (found["format"], found["rows"], found["pairs"], found["dropped"]) == ("strings", 2, 1, {"null_field": 1})
    [example] = found["examples"]
    assert example["prompt"] == [{"role": "user", "content": "asked"}]
    assert (example["reward_chosen"], example["reward_rejected"]) == (2.0, 1.0)
    assert len(example["id"]) == 32
    assert found["columns"].items() >= {"q": "text", "good": "text", "bad": "text", "meta": "other"}.items()
    assert {"problems", "splits"} <= found.keys()
