"""Judges: margins are those of known verdicts, bias is measured, and what cannot be read is dropped, never guessed."""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.config import JudgeReward, PairwisePrompt, PointwisePrompt, SelfPlayConfig, parse_config
from pipeline.config.rewarding import parse_reward
from pipeline.data.dataset import Dataset
from pipeline.errors import AlignpotError, ConfigError, SchemaError
from pipeline.rewards import http
from pipeline.rewards.backend import Dialogue
from pipeline.rewards.judge_prompts import PRESETS, Prompt
from pipeline.schema import ANNOTATED_SCHEMA
from pipeline.selection.report import render
from pipeline.steps.annotate import annotate_stages
from pipeline.steps.compare import compare_rows
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from tests.rewards.service import Asked, Reply, Service, serving
from tests.steps.conftest import make_config, write_jsonl
from tests.steps.test_annotate import candidate_table
from tests.steps.test_secrets import leaks

NUM_PAIRS = 24
QUALITIES = [((i % 5) / 2 - 1, (i % 7) / 4 - 0.9) for i in range(NUM_PAIRS)]
KEY = "canary-judge-51ab"


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def qualities(asked: Asked) -> list[float]:
    """The qualities that the answers name, in the order in which they stand."""
    [*_, turn] = asked.body["messages"]
    return [float(each) for each in re.findall(r"quality (-?[\d.]+)", turn["content"])]


def completion(text: str, tokens: list[dict[str, float]] | None = None, finish: str = "stop") -> Reply:
    """An answer. tokens: of each token the probabilities of what could stand there; the first is what stands there."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if tokens is not None:
        entries = [
            [{"token": token, "logprob": math.log(p), "bytes": [*token.encode()]} for token, p in each.items()]
            for each in tokens
        ]
        choice["logprobs"] = {"content": [{**each[0], "top_logprobs": each} for each in entries]}
    return Reply({"object": "chat.completion", "choices": [choice], "usage": {}})


class Judge(Service):
    """Prefers the answer of higher quality, and the first one by `bias`. fault: an answer in place of its own."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__(self._answered)
        self.bias = bias
        self.fault: Callable[[Asked], Reply | None] = lambda asked: None

    def p_first(self, first: float, second: float) -> float:
        return 0.9 * sigmoid(first - second + self.bias)

    def p_second(self, first: float, second: float) -> float:
        return 0.9 * sigmoid(second - first - self.bias)

    def lead(self, first: float, second: float) -> float:
        return self.p_first(first, second) - self.p_second(first, second)

    def _answered(self, asked: Asked) -> Reply:
        assert asked.path == "/v1/chat/completions"
        wrong = self.fault(asked)
        if wrong is not None:
            return wrong
        found = qualities(asked)
        likely = {"A": self.p_first(*found), " B": self.p_second(*found), "The": 0.1}
        verdict = max(likely, key=lambda token: likely[token])
        if not asked.body.get("logprobs"):
            return completion(verdict.strip())
        return completion(verdict, [{verdict: likely[verdict], **likely}], finish="length")


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(http, "_LONGEST_PAUSE_S", 0.1)


@pytest.fixture
def judge() -> Iterator[Judge]:
    with serving(Judge(bias=0.7)) as server:
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "id": f"r{i:02}",
            "prompt": f"Question {i}?",
            "chosen": f"quality {ours}",
            "rejected": f"quality {theirs}",
            **{f"{role}_logp_{side}": -5.0 - i for role in ("policy", "reference") for side in ("chosen", "rejected")},
            "num_tokens_chosen": 10,
            "num_tokens_rejected": 10 + i % 3 - 1,
        }
        for i, (ours, theirs) in enumerate(QUALITIES)
    ]
    return write_jsonl(tmp_path_factory.mktemp("source") / "pairs.jsonl", rows)


@pytest.fixture
def config(tmp_path: Path, source: Path, judge: Judge) -> Callable[..., Any]:
    def make(folder: str = "work", sections: dict[str, Any] | None = None, **keys: Any) -> Any:
        given = {"metric": {"name": "explicit"}, "run": {"shard_rows": 8, "cache": str(tmp_path / "cache")}}
        given["run"] |= {"max_dropped": 0.5}
        reward = {"backend": "judge", "urls": [judge.url], "model": "j", **keys}
        return make_config(tmp_path / folder, source, **{**given, "reward": reward, **(sections or {})})

    return make


def scored(config: Any) -> pa.Table:
    *_, run = prepared = prepare_score(config)
    score(*prepared)
    names = ["id", "lead_chosen", "lead_rejected", "reward_chosen", "reward_rejected", "drop_stage", "drop_reason"]
    dataset = Dataset.open(run.place)
    return dataset.table([name for name in names if name in dataset.schema.names], kept_only=False).sort_by("id")


def values(column: pa.ChunkedArray) -> set[float]:
    return {round(value, 12) for value in column.to_pylist()}


def margins(subset: str) -> dict[str, float]:
    rows = pa.concat_tables(pa.parquet.read_table(path) for path in Path(subset).glob("parquet/*.parquet"))
    return dict(zip(rows["id"].to_pylist(), rows["margin_explicit"].to_pylist(), strict=True))


def test_margins_are_those_of_the_verdicts_in_both_orders(config: Callable[..., Any], judge: Judge):
    columns = {role: {"backend": "columns"} for role in ("policy", "reference")}
    made = config(sections={**columns, "objective": {"name": "dpo"}, "select": {"fraction": 1.0}})
    found = scored(made)
    leads = [(judge.lead(ours, theirs), judge.lead(theirs, ours)) for ours, theirs in QUALITIES]
    np.testing.assert_allclose(found["lead_chosen"].to_numpy(), [lead[0] for lead in leads], rtol=1e-12)
    np.testing.assert_allclose(found["lead_rejected"].to_numpy(), [lead[1] for lead in leads], rtol=1e-12)
    assert found["reward_chosen"].null_count == found["reward_rejected"].null_count == NUM_PAIRS
    [report] = select_subsets(prepare_select(made))
    flips = [np.sign(ours) == np.sign(theirs) for ours, theirs in leads]
    assert 4 < sum(flips) < NUM_PAIRS - 4
    expected = [0.0 if flip else (ours - theirs) / 2 for flip, (ours, theirs) in zip(flips, leads, strict=True)]
    np.testing.assert_allclose([*dict(sorted(margins(made.output.path).items())).values()], expected, rtol=1e-12)
    wins = [(1 - i % 3) * margin for i, margin in enumerate(expected) if i % 3 != 1 and margin]
    counted = report["judges"]["reward"]["all"]
    assert (counted["flips"]["count"], counted["flips"]["of"]) == (sum(flips), NUM_PAIRS)
    assert (counted["flips_for_first"]["count"], counted["flips_for_first"]["of"]) == (sum(flips), sum(flips))
    assert counted["longer_wins"] == {"count": sum(win > 0 for win in wins), "of": len(wins)} | {
        "share": sum(win > 0 for win in wins) / len(wins)
    }
    assert "the judge's orders disagree" in render(report)
    assert "the two orders disagree" in (Path(made.output.path) / "report.html").read_text()


@pytest.mark.parametrize("labels", ["swap", "drop"])
def test_labels_that_the_judge_contradicts_are_treated(labels: str, config: Callable[..., Any], judge: Judge):
    judge.bias = 0.0
    made = config(sections={"select": {"fraction": 1.0, "labels": labels}})
    scored(made)
    select_subsets(prepare_select(made))
    expected = [(judge.lead(ours, theirs) - judge.lead(theirs, ours)) / 2 for ours, theirs in QUALITIES]
    expected = [abs(margin) for margin in expected if labels == "swap" or margin >= 0]
    np.testing.assert_allclose(sorted(margins(made.output.path).values()), sorted(expected), rtol=1e-12)


def test_what_needs_rewards_of_candidates_says_so(config: Callable[..., Any]):
    made = config()
    scored(made)
    columns = {"reward": {"backend": "columns"}, "metric": {"name": "explicit", "explicit": "candidates"}}
    reading = parse_config(made.model_dump(exclude_unset=True) | columns)
    with pytest.raises(SchemaError, match="no rewards of all candidates"):
        select_subsets(prepare_select(reading))
    compared = compare_rows(Dataset.open(prepare_score(made)[2].place), made.objective, [], [0.5])
    assert "explicit" in compared.metrics


@pytest.mark.parametrize("labels", ["keep", "swap"])
def test_a_judge_is_one_of_several_rewards(labels: str, config: Callable[..., Any], judge: Judge):
    one = config().reward.model_dump(exclude_unset=True)
    other = {"backend": "function", "function": "tests.rewards.functions:length", "isolate": False}
    combine = {"rule": "weighted", "weights": {"judge": 1.0, "length": -0.01}, "normalise": "none"}
    select = {"fraction": 1.0, "labels": labels}
    metric = {"name": "explicit", "combine": combine}
    made = config(sections={"reward": None, "rewards": {"judge": one, "length": other}} | {"metric": metric})
    made = parse_config(made.model_dump(exclude_unset=True) | {"select": select})
    *_, run = prepared = prepare_score(made)
    score(*prepared)
    table = Dataset.open(run.place).table(["id", "lead_judge_chosen", "lead_judge_rejected", "reward_judge_chosen"])
    assert table["reward_judge_chosen"].null_count == NUM_PAIRS
    leads = [(judge.lead(ours, theirs), judge.lead(theirs, ours)) for ours, theirs in QUALITIES]
    np.testing.assert_allclose(table.sort_by("id")["lead_judge_rejected"], [lead[1] for lead in leads], rtol=1e-12)
    judged = [0.0 if np.sign(ours) == np.sign(theirs) else (ours - theirs) / 2 for ours, theirs in leads]
    gaps = [len(f"quality {ours}") - len(f"quality {theirs}") for ours, theirs in QUALITIES]
    expected = [margin - 0.01 * gap for margin, gap in zip(judged, gaps, strict=True)]
    expected = [abs(margin) if labels == "swap" else margin for margin in expected]
    [report] = select_subsets(prepare_select(made))
    np.testing.assert_allclose([*dict(sorted(margins(made.output.path).items())).values()], expected, atol=1e-12)
    assert report["judges"]["judge"]["all"]["flips"]["count"] == judged.count(0.0)


def test_votes_are_counted_and_nothing_is_paid_twice(config: Callable[..., Any], judge: Judge):
    judge.fault = lambda asked: completion("AB"[(asked.body.get("seed", 0) + round(qualities(asked)[0])) % 3 == 1])
    parameters = {"temperature": 1.0, "top_p": 0.9, "max_tokens": None}
    keys = {"verdict": "votes", "votes": 3, "parameters": parameters}
    found = scored(config(**keys))
    assert values(found["lead_chosen"]) == {round(1 / 3, 12)}
    assert len(judge.asked) == 2 * 3 * NUM_PAIRS
    for asked in judge.asked:
        assert {*asked.body} <= {"model", "messages", "temperature", "top_p", "seed"}
    assert scored(config("again", **keys)).equals(found)
    assert len(judge.asked) == 2 * 3 * NUM_PAIRS
    scored(config("more", **{**keys, "votes": 5}))
    assert len(judge.asked) == 2 * 5 * NUM_PAIRS


def test_rows_that_are_alike_are_paid_once(config: Callable[..., Any], judge: Judge, tmp_path: Path):
    judge.fault = lambda asked: completion(str(round(qualities(asked)[0])))
    rows = [
        {"id": f"r{i}", "prompt": "One question?", "chosen": "quality 8", "rejected": f"quality {i // 2}"}
        for i in range(2, 8)
    ]
    source = {"path": str(write_jsonl(tmp_path / "alike.jsonl", rows)), "id_column": "id"}
    found = scored(config(sections={"source": source}, style="pointwise", verdict="votes"))
    assert found["reward_rejected"].to_pylist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert len(judge.asked) == 1 + 3


def test_rows_without_a_verdict_are_dropped(config: Callable[..., Any], judge: Judge):
    def unsure(asked: Asked) -> Reply | None:
        number = int(re.search(r"Question (\d+)", asked.body["messages"][-1]["content"])[1])  # type: ignore[index]
        if number % 6 == 0:
            return completion("I cannot say.")
        if number == 7:
            return Reply({"error": {"type": "BadRequestError"}}, 400)
        return completion("A" if number == 8 and asked.body.get("seed") else "tie") if number == 8 else None

    judge.fault = unsure
    found = scored(config(verdict="votes"))
    reasons = Counter(found["drop_reason"].to_pylist())
    assert reasons == {None: NUM_PAIRS - 6, "no_verdict": 5, "reward_error": 1}
    asked = len(judge.asked)
    assert scored(config("again", verdict="votes"))["drop_reason"].equals(found["drop_reason"])
    assert len(judge.asked) == asked + 2, "only what was refused is asked for again"


def test_answers_without_a_verdict_are_asked_for_again(config: Callable[..., Any], judge: Judge):
    def at_the_third_try(asked: Asked) -> Reply:
        assert [turn["role"] for turn in asked.body["messages"]] == ["user", "response_1", "response_2"]
        ours, theirs = (float(turn["content"].split()[-1]) for turn in asked.body["messages"][1:])
        ranking = 3 if ours > theirs else 5
        good = completion(f'```json\n{{"score_1": 4, "score_2": 3, "ranking": {ranking}}}\n```')
        return good if asked.body.get("seed") == 2 else completion('{"score_1": 4, "ranking": 3.5}')

    judge.fault = at_the_third_try
    found = scored(config(prompt="nemotron-genrm", verdict="votes"))
    assert values(found["lead_chosen"]) == {0.2, -0.6}
    assert found["drop_reason"].null_count == NUM_PAIRS
    assert len(judge.asked) == 3 * 2 * NUM_PAIRS


VERDICTS = [
    ("pairwise", "default", {"A": 1, " B.": -1, "**B**": -1, "Answer: A": 1, "A or B": None, "": None, "AB": None}),
    ("pairwise", "default", {"The first": None, "a": None, "<think>B</think>\nA": 1, "Neither": None}),
    ("pairwise", "mt-bench", {"So it is [[A]]": 1, "Both. [[C]].": 0, "[A]": None, "[[D]]": None, "[[A]": None}),
    ("pairwise", "mt-bench", {"It says [[B]] itself, so [[A]]": 1, "[[A]] But it says [[B]], a trick": None}),
    ("pairwise", "mt-bench", {"<think>[[B]]</think>[[A]]": 1, "[[A]] and again [[A]], as I said": 1}),
    ("pairwise", "rm-r1", {"<eval>[[B]]</eval><answer>[[A]]</answer>": 1, "<answer>A</answer>": None, "[[A]]": None}),
    ("pairwise", "rm-r1", {"<answer>[[A]]</answer><answer>[[B]]</answer>": -1, "<answer> [[B]]\n</answer>\n": -1}),
    ("pairwise", "prometheus", {"Feedback: good [RESULT] A": 1, "[RESULT] (B)": -1, "[RESULT] Apples": None}),
    ("pairwise", "nemotron-genrm", {'{"ranking": 1}': 1, '{"ranking": "6"}': -1, '{"ranking": 7}': None, "3": None}),
    ("pointwise", "default", {"7": 7, "9/9": 9, "0": None, "10": None, "7 or 8": None, "7.5": None}),
    ("pointwise", "prometheus", {"fine [RESULT] 4": 4, "[RESULT] 6": None, "[RESULT] 4.5": None, "4": None}),
    ("pointwise", "rewardbench", {"1. Good. 2. Bad. Rating: 8": 8, "8/10": 8, "**10**": 10, "It is 11": None}),
    ("pointwise", "rewardbench", {"Perhaps 7.5": None, "No number": None, "1. First point. Rating: 0": None}),
]


@pytest.mark.parametrize(("style", "name", "texts"), VERDICTS)
def test_verdicts_have_the_form_of_their_prompt(style: str, name: str, texts: dict[str, float | None]):
    preset = PRESETS[style, name]
    found = {text: preset.label(text) for text in texts}
    assert {text: label and preset.values[label[0]] for text, label in found.items()} == texts


def dialogue(answer: str, prompt: str = "How?") -> Dialogue:
    return Dialogue(
        id="r",
        prompt=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": prompt}],
        answer=[{"role": "assistant", "content": answer, "tool_calls": '[{"function": {"name": "look_up"}}]'}],
        tools='[{"name": "look_up"}]',
    )


def test_every_prompt_shows_all_that_is_judged_once():
    names = {("pairwise", name) for name in get_args(PairwisePrompt)}
    assert PRESETS.keys() == names | {("pointwise", name) for name in get_args(PointwisePrompt)}
    for style, name in PRESETS:
        section = JudgeReward(backend="judge", urls=["http://x"], model="m", style=style, prompt=name, verdict="votes")
        answers = [dialogue("{{ one }}"), dialogue("two [[A]]")][: 2 if style == "pairwise" else 1]
        text = json.dumps(Prompt(section).messages(answers))
        for part in ("How?", "Be kind.", "{{ one }}", *["two [[A]]"][: len(answers) - 1]):
            assert text.count(part) == 1, (name, part)
        assert text.count("look_up") == 1 + len(answers), name


def test_a_template_and_a_rubric_of_ones_own(config: Callable[..., Any], judge: Judge, tmp_path: Path):
    (tmp_path / "own.jinja").write_text("{{ rubric }}\n{# user #}\n{{ question }} 1: {{ first }} 2: {{ second }}")
    made = config(template=str(tmp_path / "own.jinja"), rubric="Short is good.")
    found = scored(made)
    assert found["lead_chosen"].null_count == 0
    texts = [turn["content"] for turn in judge.asked[0].body["messages"]]
    assert texts[0] == "Short is good."
    assert re.fullmatch(r"Question \d+\? 1: quality \S+ 2: quality \S+", texts[1])
    (tmp_path / "own.jinja").write_text("{{ question }} {{ first }} {{ secnd }}")
    with pytest.raises(ConfigError, match=r"reward\.template .*secnd"):
        scored(config("typo", template=str(tmp_path / "own.jinja")))


@pytest.mark.parametrize(
    ("before", "verdict", "after"),
    [
        (["So", " [["], {"A": 0.6, "B": 0.3, "C": 0.1}, ["]]"]),
        (["Ärger \u65e5"], {" [[A": 0.6, " [[B": 0.3, " [[C": 0.05, "B": 0.05}, ["]]", "<|end|>"]),
        (["<think>", "[[B]]", "</think>", "[["], {"A]]": 0.6, "B]]": 0.3, "A]": 0.1}, []),
    ],
)
def test_log_probabilities_are_read_where_the_verdict_stands(
    before: list[str], verdict: dict[str, float], after: list[str], config: Callable[..., Any], judge: Judge
):
    tokens = [{each: 1.0} for each in before] + [verdict] + [{each: 1.0} for each in after]
    text = "".join([*before, next(iter(verdict)), *after]).removesuffix("<|end|>")
    judge.fault = lambda asked: completion(text, tokens)
    found = scored(config(prompt="mt-bench"))
    assert values(found["lead_chosen"]) == {0.3}


def test_ratings_are_ordinary_rewards(config: Callable[..., Any], judge: Judge):
    def rate(asked: Asked) -> Reply:
        [quality] = qualities(asked)
        return completion("5", [{"5": 0.4, "6": 0.2 if quality > 0 else 0.1, "None": 0.1}])

    judge.fault = rate
    made = config(style="pointwise")
    found = scored(made)
    assert "lead_chosen" not in found.column_names
    high, low = (5 * 0.4 + 6 * 0.2) / 0.6, (5 * 0.4 + 6 * 0.1) / 0.5
    expected = [high if ours > 0 else low for ours, _ in QUALITIES]
    np.testing.assert_allclose(found["reward_chosen"].to_numpy(), expected, rtol=1e-12)
    judge.fault = lambda asked: completion("9" if "deep" in asked.body["messages"][-1]["content"] else "?")
    reward = made.reward.model_copy(update={"verdict": "votes"})
    [stage] = annotate_stages({"": reward}, made.tokens, ANNOTATED_SCHEMA)
    apply = stage.build()
    table = apply(candidate_table([["deep", "", "shallow"], ["flat", "dull"]]))
    apply.close()  # type: ignore[attr-defined]
    assert table["all_rm_scores"][0].as_py() == [9.0, None, None]
    assert table["drop_reason"].to_pylist() == [None, "no_verdict"]


def test_leads_stay_with_rewards_of_columns_and_go_with_others(config: Callable[..., Any], tmp_path: Path):
    made = config()
    found = scored(made)
    pairs = Dataset.open(prepare_score(made)[2].place)
    for name, reward, keeps in (
        ("kept", {"backend": "columns"}, True),
        ("gone", {"backend": "function", "function": "tests.rewards.functions:length", "isolate": False}, False),
    ):
        sections = {"source": None, "scored": str(tmp_path / name), "reward": reward, "output": None, "select": None}
        again = parse_config(made.model_dump(exclude_unset=True) | sections)
        *_, run = prepared = prepare_score(again, pairs)
        score(*prepared)
        dataset = Dataset.open(run.place)
        assert ("lead_chosen" in dataset.schema.names) == keeps
        if keeps:
            assert dataset.table(["id", "lead_chosen"]).sort_by("id").equals(found.select(["id", "lead_chosen"]))


def test_a_server_that_cannot_serve_ends_the_run(config: Callable[..., Any], judge: Judge):
    judge.fault = lambda asked: completion("A")
    with pytest.raises(ConfigError, match=r"no log-probabilities .* reward\.verdict: votes"):
        scored(config())
    judge.fault = lambda asked: Reply({"error": {"type": "BadRequestError", "param": "top_logprobs"}}, 400)
    with pytest.raises(AlignpotError, match=r"each of the first 16 requests: .*BadRequestError, top_logprobs"):
        scored(config("refused"))
    with pytest.raises(ConfigError, match=r"temperature 0 are one and the same"):
        prepare_score(config("votes", verdict="votes", votes=3))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"prompt": "rewardbench"}, "prompt rewardbench is not for style pairwise; wanted one of default, mt-bench"),
        ({"style": "pointwise", "prompt": "rewardbench"}, "two tokens: use votes"),
        ({"votes": 3}, "only with verdict: votes"),
        ({"parameters": {"n": 4}}, "must not name n"),
        ({"prompt": "nemotron-genrm", "rubric": "Be good."}, "has no place for it"),
        ({"parameters": {"api_key": "x"}}, "must not carry credentials"),
    ],
)
def test_settings_that_do_not_fit_are_refused(keys: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        JudgeReward(backend="judge", urls=["http://x"], model="m", **keys)


def test_single_responses_take_no_pairwise_judge(tmp_path: Path):
    reward = {"backend": "judge", "urls": ["http://x"], "model": "m"}
    with pytest.raises(ValidationError, match="set style: pointwise"):
        SelfPlayConfig(path=str(tmp_path), prompts={"path": "p"}, policy={"model": "m"}, reward=reward)
    with pytest.raises(ConfigError, match="set style: pointwise"):
        parse_reward({"source": {"path": "p"}, "rewards": {"j": reward}, "rewarded": str(tmp_path)})


def test_key_and_texts_are_told_nowhere(
    config: Callable[..., Any],
    judge: Judge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge.fault = lambda asked: (
        Reply(
            {"error": {"message": f"{asked.headers} {asked.body}", "type": "quality 1"}}, 400 if asked.number else 500
        )
        if asked.number < 2
        else None
    )
    with caplog.at_level(logging.DEBUG):
        scored(config(key_variable="JUDGE_KEY"))
    assert {asked.headers["Authorization"] for asked in judge.asked} == {f"Bearer {KEY}"}
    assert leaks(tmp_path, [KEY]) == []
    assert leaks(tmp_path / "cache", ["quality", "Question"]) == []
    assert not [word for word in (KEY, "quality", "Question") if word in caplog.text]
