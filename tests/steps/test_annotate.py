"""Rewards of K responses: the model's own numbers, null where there is none, and no row lost."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.config import ClassifierReward, Tokens
from pipeline.errors import ModelError
from pipeline.models.loading import load_classifier
from pipeline.models.prompts import DialogueTokenizer
from pipeline.models.rewards import ClassifierEngine
from pipeline.models.scores import Scores
from pipeline.rewards.classifier import ClassifierScorer
from pipeline.schema import ANNOTATED_SCHEMA, CANDIDATE_SCHEMA, DROPPED, KEPT
from pipeline.steps.annotate import AnnotateResponses, TokeniseResponses, annotate_stages
from tests.fixtures_models import CHATML, tiny_model, tiny_tokenizer
from tests.selfplay.tables import messages

REFUSES_NO = CHATML.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if 'no' in message['content'] %}{{ raise_exception('no') }}{% endif %}",
    1,
)
ROWS = [
    ["The answer is many.", "The weather is better than the other.", "Jumps."],
    ["", "A few short sentences and thanks.", ""],
    ["The same.", "The same.", "The other one."],
]


def candidate_table(rows: list[list[str]] = ROWS) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "id": f"p{index}",
                "prompt": messages(f"Question {index}: what is the answer?"),
                "strategy": "seed",
                "round": 0,
                "all_generated_responses": responses,
                "finish_reasons": ["stop"] * len(responses),
                "num_tokens_responses": [3] * len(responses),
                "num_tokens_prompt": 9,
                "status": KEPT,
            }
            for index, responses in enumerate(rows)
        ],
        CANDIDATE_SCHEMA,
    )


@pytest.fixture(scope="module")
def reward(tiny_model_dir) -> ClassifierReward:
    directory = tiny_model_dir("llama", classifier=True, seed=3)
    return ClassifierReward(backend="classifier", model=str(directory), dtype="float32")


@pytest.fixture(scope="module")
def engine(reward) -> ClassifierEngine:
    return ClassifierEngine(load_classifier(reward))


def tokenised(table: pa.Table, template: str = CHATML, max_length: int = 512) -> pa.Table:
    return TokeniseResponses(DialogueTokenizer(tiny_tokenizer(template), max_length))(table)


class Giving:
    """An engine whose rewards are given."""

    def __init__(self, rewards, left_out=None) -> None:
        self._found = Scores(values=np.asarray(rewards, np.float64), left_out=left_out or {})
        self.groups = []

    def disagreement(self, groups):
        return None

    def score(self, groups):
        self.groups = groups
        return self._found


def test_rewards_are_the_models_own(engine, reward):
    found = AnnotateResponses(ClassifierScorer(engine), reads_ids=True)(tokenised(candidate_table()))
    assert found.schema == ANNOTATED_SCHEMA
    model = tiny_model("llama", classifier=True, seed=3, num_labels=1)
    for row in found.to_pylist():
        for text, value in zip(row["all_generated_responses"], row["all_rm_scores"], strict=True):
            if not text:
                assert value is None
                continue
            dialogue = [*row["prompt"], {"role": "assistant", "content": text}]
            ids = tiny_tokenizer().apply_chat_template(dialogue, return_dict=True, return_tensors="pt")
            with torch.inference_mode():
                assert value == pytest.approx(float(model(**ids).logits), abs=1e-4)


def test_rewards_do_not_depend_on_the_rows_beside(engine):
    stage = AnnotateResponses(ClassifierScorer(engine), reads_ids=True)
    whole = stage(tokenised(candidate_table())).to_pylist()
    alone = [stage(tokenised(candidate_table().slice(i, 1))).to_pylist()[0] for i in range(len(ROWS))]
    assert whole == alone


def test_responses_of_a_prompt_are_one_group_and_empty_ones_in_none():
    given = Giving([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = AnnotateResponses(ClassifierScorer(given), reads_ids=True)(tokenised(candidate_table()))
    assert [len(group) for group in given.groups] == [3, 1, 3]
    assert found.column("all_rm_scores").to_pylist() == [[1.0, 2.0, 3.0], [None, 4.0, None], [5.0, 6.0, 7.0]]


def test_a_row_without_any_reward_is_dropped_with_its_reason():
    given = Giving([math.nan, 2.0, math.inf, math.nan, 5.0, 6.0, 7.0], {3: "does_not_fit_memory"})
    found = AnnotateResponses(ClassifierScorer(given), reads_ids=True)(tokenised(candidate_table())).to_pylist()
    assert [row["all_rm_scores"] for row in found] == [[None, 2.0, None], [None, None, None], [5.0, 6.0, 7.0]]
    assert [row["status"] for row in found] == [KEPT, DROPPED, KEPT]
    assert (found[1]["drop_stage"], found[1]["drop_reason"]) == ("annotate", "does_not_fit_memory")


def test_rewards_that_are_not_finite_say_so():
    found = AnnotateResponses(ClassifierScorer(Giving([math.nan] * 3)), reads_ids=True)(
        tokenised(candidate_table(ROWS[:1]))
    )
    assert found.column("drop_reason").to_pylist() == ["non_finite_reward"]


def test_responses_that_the_template_refuses_have_no_reward(engine):
    table = candidate_table([["no answer", "an answer"], ["no", "no, none"], ["", ""]])
    found = AnnotateResponses(ClassifierScorer(engine), reads_ids=True)(tokenised(table, REFUSES_NO)).to_pylist()
    assert [[value is None for value in row["all_rm_scores"]] for row in found] == [
        [True, False],
        [True] * 2,
        [True] * 2,
    ]
    assert [row["drop_reason"] for row in found] == [None, "template_error", "empty_responses"]


def test_rows_dropped_before_have_no_rewards(engine):
    table = candidate_table()
    status = pa.array([KEPT, DROPPED, KEPT])
    table = table.set_column(table.schema.get_field_index("status"), "status", status)
    found = AnnotateResponses(ClassifierScorer(engine), reads_ids=True)(tokenised(table)).to_pylist()
    assert found[1]["all_rm_scores"] is None
    assert found[0]["all_rm_scores"] is not None


def test_a_shard_without_rows_to_score_is_passed_on(engine):
    found = AnnotateResponses(ClassifierScorer(engine), reads_ids=True)(tokenised(candidate_table().slice(0, 0)))
    assert found.schema == ANNOTATED_SCHEMA
    assert found.num_rows == 0


def test_an_engine_that_is_wrong_on_real_rows_ends_the_run(engine, monkeypatch):
    monkeypatch.setattr(engine, "_plain", lambda dialogue: 1e3)
    with pytest.raises(ModelError, match="reward model cannot be trusted"):
        AnnotateResponses(ClassifierScorer(engine), reads_ids=True)(tokenised(candidate_table()))


def test_the_stages_of_a_reward_are_the_stages(reward, engine):
    table = candidate_table()
    expected = AnnotateResponses(ClassifierScorer(engine), reads_ids=True)(tokenised(table))
    stages = annotate_stages({"": reward}, Tokens(), ANNOTATED_SCHEMA)
    assert [(stage.name, stage.model) for stage in stages] == [("tokenise", None), ("annotate", reward)]
    for stage in stages:
        table = stage.build()(table)
    assert table.equals(expected)
