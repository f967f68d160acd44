"""Scores of the source are read under every known spelling, only where wanted, and never guessed."""

import fsspec
import pytest

from pipeline.config import Source
from pipeline.errors import SchemaError
from pipeline.sources.columns import kinds_of_rows
from pipeline.sources.formats import FORMATS
from pipeline.sources.open import open_source
from pipeline.sources.scores import OTHER_REWARDS, OWN_REWARDS, plan_scores
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

P = to.pair()
LOGPS = {
    "policy_logp_chosen": -3.5,
    "policy_logp_rejected": -4.0,
    "reference_logp_chosen": -3.25,
    "reference_logp_rejected": -5.0,
    "num_tokens_prompt": 7,
    "num_tokens_chosen": 2,
    "num_tokens_rejected": 3,
    "truncated": False,
}
ONLY_REWARDS = {"rewards": True, "policy_logps": False, "reference_logps": False}


def scores_of(folder, row, write=to.write_jsonl, name="a.jsonl", **wanted):
    write(folder / name, [row])
    flags = {"rewards": False, "policy_logps": False, "reference_logps": False, **wanted}
    reader, files = open_source(fsspec.filesystem("file"), str(folder), Source(path="s"), **flags)
    read = reader.read(plan_shards(files, 10)[0]).to_pylist()[0]
    assert read["status"] == "kept", read["drop_reason"]
    prefixes = ("reward", "policy_logp", "reference_logp", "num_tokens", "truncated")
    return {key: value for key, value in read.items() if key.startswith(prefixes) and value is not None}


@pytest.mark.parametrize("names", [OWN_REWARDS, *OTHER_REWARDS])
@pytest.mark.parametrize("layout", [to.as_messages, to.as_implicit, to.as_binarized, to.as_strings, to.as_transcript])
def test_rewards_are_read_under_every_spelling_in_every_layout(tmp_path, names, layout):
    row = {**layout(P), names[0]: 2, names[1]: -0.5}
    assert scores_of(tmp_path, row, rewards=True) == {"reward_chosen": 2.0, "reward_rejected": -0.5}


def test_margin_is_stored_as_the_reward_of_chosen_over_zero(tmp_path):
    assert scores_of(tmp_path, {**P, "margin": 1.5}, rewards=True) == {"reward_chosen": 1.5, "reward_rejected": 0.0}


@pytest.mark.parametrize("layout", to.PICKED.values())
def test_candidates_give_rewards_and_all_of_them(tmp_path, layout):
    got = scores_of(tmp_path, layout(P), to.write_parquet, "a.parquet", rewards=True)
    assert got == {"reward_chosen": 2.25, "reward_rejected": -1.5, "rewards_all": [-1.5, 2.25]}


def test_columns_for_the_pair_win_over_candidates_that_it_was_named_beside(tmp_path):
    row = {**to.as_judged(P), **P, "chosen_rating": 5.0, "rejected_rating": 4.0}
    got = scores_of(tmp_path, row, rewards=True)
    assert got == {"reward_chosen": 5.0, "reward_rejected": 4.0, "rewards_all": [-1.5, 2.25]}


def test_all_rewards_are_kept_beside_own_columns(tmp_path):
    row = {**P, "reward_chosen": 1.0, "reward_rejected": 0.0, "rewards_all": [0.0, 0.5, 1.0]}
    assert scores_of(tmp_path, row, rewards=True)["rewards_all"] == [0.0, 0.5, 1.0]


def test_log_probs_are_read_by_the_role_that_wants_them(tmp_path):
    row = {**P, **LOGPS, "score_chosen": 1.0, "score_rejected": 0.0}
    reference = {name: value for name, value in LOGPS.items() if name.startswith("reference")}
    policy = {name: value for name, value in LOGPS.items() if name not in reference}
    assert scores_of(tmp_path, row) == {}
    assert scores_of(tmp_path, row, policy_logps=True) == policy
    assert scores_of(tmp_path, row, reference_logps=True) == reference
    assert scores_of(tmp_path, row, policy_logps=True, reference_logps=True) == LOGPS


def test_own_names_win_over_other_spellings(tmp_path):
    row = {**P, "reward_chosen": 1.0, "reward_rejected": 0.0, "score_chosen": 9.0, "score_rejected": 8.0, "margin": 3}
    assert scores_of(tmp_path, row, rewards=True) == {"reward_chosen": 1.0, "reward_rejected": 0.0}


def test_two_spellings_are_refused():
    row = {**P, "score_chosen": 1.0, "score_rejected": 0.0, "chosen_rating": 5, "rejected_rating": 1}
    with pytest.raises(SchemaError, match=r"2 spellings of rewards.*Rename the wanted two to reward_chosen"):
        plan_scores(kinds_of_rows([row]), FORMATS["messages"], **ONLY_REWARDS)


@pytest.mark.parametrize("row", [P, {**P, "score_chosen": 1.0}, {**P, "score_chosen": "1", "score_rejected": "2"}])
def test_absent_rewards_are_refused(row):
    with pytest.raises(SchemaError, match="needs rewards; the source has prompt"):
        plan_scores(kinds_of_rows([row]), FORMATS["messages"], **ONLY_REWARDS)


@pytest.mark.parametrize("absent", ["policy_logp_chosen", "num_tokens_rejected"])
def test_absent_log_probs_and_counts_are_refused(absent):
    row = {**P, **LOGPS}
    del row[absent]
    with pytest.raises(SchemaError, match=rf"needs \['{absent}'\]"):
        plan_scores(kinds_of_rows([row]), FORMATS["scored"], rewards=False, policy_logps=True, reference_logps=True)
