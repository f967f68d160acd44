"""Tables of two answers with a label, and of answers with ranks, as datasets that have a name write them.

In every case the better answer is "good". Where the source has scores, they become the rewards of the pair.
"""

import fsspec
import pytest

from pipeline.config import Source
from pipeline.sources.columns import kinds_of_rows
from pipeline.sources.formats import FORMATS, resolve_format
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from tests.sources.layouts import pair, turn, write_jsonl, write_parquet

ASKED = [turn("user", "q")]
SAID = {side: [*ASKED, turn("assistant", side)] for side in ("good", "bad")}
NO_SCORES = (None, None)


def rounds(first, second):
    return [*ASKED, turn("assistant", first), turn("user", "more"), turn("assistant", second)]


COMPARED = {
    "shp": ({"history": "q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0, "score_A": 2, "score_B": 9},
            (9.0, 2.0)),
    "shp, first": ({"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}, NO_SCORES),
    "safe-rlhf": ({"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1,
                   "safer_response_id": 0}, NO_SCORES),
    "webgpt": ({"question": {"dataset": "eli5", "full_text": "q"}, "answer_0": "bad", "answer_1": "good",
                "score_0": -0.5, "score_1": 0.5}, (0.5, -0.5)),
    "helpsteer3": ({"context": ASKED, "response1": "bad", "response2": "good", "overall_preference": 2}, (2.0, 0.0)),
    "helpsteer2": ({"prompt": "q", "response_1": "good", "response_2": "bad", "preference_strength": -1}, (1.0, 0.0)),
    "arena": ({"conversation_a": SAID["bad"], "conversation_b": SAID["good"], "winner": "model_b", "turn": 1},
              NO_SCORES),
    "mt-bench, first round": ({"conversation_a": rounds("good", "x"), "conversation_b": rounds("bad", "y"),
                               "winner": "model_a", "turn": 1}, NO_SCORES),
    "arena, one column each": ({"prompt": '["q"]', "response_a": '["good"]', "response_b": '["bad"]',
                                "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, NO_SCORES),
    "alpaca-farm": ({"instruction": "q", "input": "", "output_1": "bad", "output_2": "good", "preference": 2},
                    NO_SCORES),
    "a letter for numbered answers": ({"prompt": "q", "response_1": "good", "response_2": "bad", "winner": "model_a"},
                                      NO_SCORES),
    "judge-bench": ({"question": "q", "response_A": "bad", "response_B": "good", "label": "B>A"}, NO_SCORES),
    "name of the answer": ({"messages": ASKED, "answer_a": "bad", "answer_b": "good", "chosen": "answer_b"}, NO_SCORES),
    "pandalm": ({"instruction": "q", "input": "", "response1": "bad", "response2": "good", "annotator1": 2,
                 "annotator2": 1, "annotator3": 2}, NO_SCORES),
    "summarize from feedback": ({"info": {"id": "x", "post": "q"}, "summaries": [{"text": "bad"}, {"text": "good"}],
                                 "choice": 1}, NO_SCORES),
    "mean of judgements": ({"instruction": "q", "output_1": "bad", "output_2": "good", "preference": 1.8}, NO_SCORES),
    "scores as text": ({"query": "q", "response_a": "bad", "response_b": "good", "score_a": "2", "score_b": "9"},
                       (9.0, 2.0)),
    "prometheus, beside the judge's prompt": (
        {"orig_instruction": "q", "instruction": "Judge.", "orig_response_A": "good", "orig_response_B": "bad",
         "orig_preference": "A"}, NO_SCORES),
    "prometheus": ({"instruction": "q", "orig_response_A": "good", "orig_response_B": "bad", "orig_preference": "A"},
                   NO_SCORES),
}  # fmt: skip
ANSWERS = {
    "nectar": ({"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [
        {"answer": "bad", "model": "m", "rank": 3.0}, {"answer": "good", "model": "n", "rank": 1.0},
        {"answer": "so-so", "model": "o", "rank": 2.0}]}, (-1.0, -3.0)),
    "ultrafeedback": ({"instruction": "q", "completions": [
        {"response": "good", "overall_score": 8.0, "annotations": {"honesty": {"Rating": "1"}}},
        {"response": "bad", "overall_score": 3.0, "annotations": {"honesty": {"Rating": "5"}}}]}, (8.0, 3.0)),
    "ultrafeedback, aspects alone": ({"instruction": "q", "completions": [
        {"response": "bad", "annotations": {"honesty": {"Rating": "N/A"}, "helpfulness": {"Rating": "2"}}},
        {"response": "good", "annotations": {"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "5"}}}]},
        (4.5, 2.0)),
    "nemo-rl": ({"context": ASKED, "completions": [
        {"rank": 0, "completion": [turn("assistant", "good")], "reward": 0.5},
        {"rank": 1, "completion": [turn("assistant", "bad")], "reward": 0.25}]}, (0.5, 0.25)),
    "texts beside ranks": ({"prompt": "q", "outputs": ["bad", "good"], "ranks": [2, 1]}, (-1.0, -2.0)),
    "texts beside scores": ({"prompt": "q", "responses": ["bad", "good"], "scores": [0.5, 2]}, (2.0, 0.5)),
    "code-ultra-feedback": ({"instruction": "q", "responses": [
        {"model": "m", "response": "bad"}, {"model": "n", "response": "good"}],
        "annotations": [{"model": "n", "rating": "5"}, {"model": "m", "rating": "2"}]}, (5.0, 2.0)),
    "gpt-4-llm": ({"user_input": "q", "responses_and_scores": [
        {"response": "bad", "source": "x", "score": 2.0}, {"response": "good", "source": "y", "score": 9.0}]},
        (9.0, 2.0)),
    "stack exchange": ({"question": "q", "answers": [
        {"text": "bad", "pm_score": 1, "selected": True}, {"text": "good", "pm_score": 5, "selected": False}]},
        (5.0, 1.0)),
}  # fmt: skip
OTHERS = {
    "openai": ({"input": {"messages": ASKED, "tools": []}, "preferred_output": [turn("assistant", "good")],
                "non_preferred_output": [turn("assistant", "bad")]}, NO_SCORES),
    "rated": ({"system": "", "input": "q", "chosen": "good", "rejected": "bad", "rating": [9.0, 7.0],
               "generations": ["good", "bad"], "order": ["chosen", "rejected"], "status": "unchanged"}, (9.0, 7.0)),
    "rated, swapped since": ({"input": "q", "chosen": "good", "rejected": "bad", "rating": [7.0, 9.0],
                              "order": ["chosen", "rejected"], "original_chosen": "bad", "original_rejected": "good",
                              "status": "swapped"}, (9.0, 7.0)),
    "messages": ({"trajectory": [{"from": "user", "value": "q"}], "chosen": "good", "rejected": "bad"}, NO_SCORES),
    "messages, in context": ({"context": ASKED, "chosen": SAID["good"][1:], "rejected": SAID["bad"][1:]}, NO_SCORES),
    "binarized": ({"source": "tulu", "prompt": "q", "chosen": SAID["good"], "rejected": SAID["bad"],
                   "chosen_model": "m"}, NO_SCORES),
}  # fmt: skip
CASES = {
    **{f"compared: {name}": case for name, case in COMPARED.items()},
    **{f"answers: {name}": case for name, case in ANSWERS.items()},
    **{name.split(",")[0] + f": {name}": case for name, case in OTHERS.items()},
}


def read(folder, rows, write, name, *, rewards):
    write(folder / name, rows)
    source, fs = Source(path=str(folder)), fsspec.filesystem("file")
    reader, files = open_source(fs, str(folder), source, rewards=rewards, policy_logps=False, reference_logps=False)
    return reader.format, [row for shard in plan_shards(files, 2) for row in reader.read(shard).to_pylist()]


@pytest.mark.parametrize(("write", "name"), [(write_jsonl, "a.jsonl"), (write_parquet, "a.parquet")])
@pytest.mark.parametrize("case", CASES)
def test_better_answer_is_chosen_and_scores_are_rewards(case, write, name, tmp_path):
    row, rewards = CASES[case]
    found, rows = read(tmp_path, [row, row, row], write, name, rewards=rewards != NO_SCORES)
    assert found == case.split(":")[0]
    want = pair("q", "good", "bad")
    for got in rows:
        assert {side: got[side] for side in want} == want, got["drop_reason"]
        assert (got["reward_chosen"], got["reward_rejected"]) == rewards


def test_second_round_of_a_judged_dialogue_is_the_answer():
    row = {"conversation_a": rounds("same", "good"), "conversation_b": rounds("same", "bad"), "winner": "model_a"}
    got = FORMATS["compared"].convert({**row, "turn": 2})
    assert (len(got.prompt), got.chosen[-1]["content"], got.rejected[-1]["content"]) == (3, "good", "bad")


def test_label_needs_no_scores():
    got = FORMATS["compared"].convert({**COMPARED["shp"][0], "score_B": None})
    assert (got.chosen[0]["content"], got.rewards.reason) == ("good", "null_score")


def test_three_answers_are_not_taken_for_two():
    row = {"prompt": "q", **{f"response_{index}": str(index) for index in range(3)}, "winner": "model_a"}
    assert FORMATS["compared"].lacks(kinds_of_rows([row])) == ["two answers, such as response_a and response_b"]


def test_own_pair_of_a_table_wins_over_its_answers():
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "response_a": "bad", "response_b": "good", "winner": "a"}
    assert resolve_format("auto", kinds_of_rows([row]), [row]) == "strings"


def test_answers_go_on_from_one_beginning():
    row = {"prompt": "q", "initial_reason_steps": "Step 1.", "chosen": " good", "rejected": " bad"}
    got = FORMATS["strings"].convert(row)
    assert got.prompt == [*ASKED, turn("assistant", "Step 1.")]
    own = {"prompt": got.prompt, "chosen": got.chosen, "rejected": got.rejected, "status": "kept"}
    assert FORMATS["scored"].convert(own) == got


@pytest.mark.parametrize("history", [[["before", "then"]], [turn("user", "before"), turn("assistant", "then")]])
def test_history_stands_before_the_prompt(history):
    row = {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad", "history": history}
    got = FORMATS["strings"].convert({**row, "system": "s"})
    assert got.prompt == [turn("system", "s"), turn("user", "before"), turn("assistant", "then"), *ASKED]
