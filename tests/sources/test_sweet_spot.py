"""Sweet-spot pairs: the best candidate against the one nearest to two standard deviations below the mean."""

import json
import statistics

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Source
from pipeline.drops import DropRow, Reason
from pipeline.errors import ConfigError
from pipeline.sources.formats import FORMATS
from pipeline.sources.inspect import inspect_source
from pipeline.sources.open import open_source
from pipeline.sources.ranked import sweet_spot
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

# Mean 0.06 and deviation 1.04, so the sweet spot is at -2.02.
SCORES = [0.5, 1.0, -3.0, -1.9, 0.8, 0.2, 0.4, 0.6, 0.3, 0.1, 0.7, 0.9, 0.2, 0.5, 0.4, -0.7]
TEXTS = [f"answer {i}" for i in range(len(SCORES))]


def candidates(**row):
    return {"all_generated_responses": TEXTS, "all_rm_scores": SCORES, **row}


def picked(row, name="candidates"):
    return FORMATS[name].convert(row, "sweet-spot")


def sides(pair):
    return [side[-1]["content"] for side in (pair.chosen, pair.rejected)]


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=12))
def test_pick_is_the_nearest_other_candidate_by_the_definition(numbers):
    scores = [number / 4 for number in numbers]
    target = statistics.fmean(scores) - 2 * statistics.pstdev(scores)
    best = scores.index(max(scores))
    distances = [abs(score - target) if i != best else float("inf") for i, score in enumerate(scores)]
    near = [i for i, distance in enumerate(distances) if distance <= min(distances) + 1e-9]
    if all(scores[i] == scores[best] for i in near):
        with pytest.raises(DropRow, match="tied_rewards"):
            sweet_spot(scores)
        return
    pick = sweet_spot(scores)
    assert pick in near
    assert scores[pick] < scores[best]
    assert pick == scores.index(scores[pick])


@given(st.lists(st.floats(-1e6, 1e6).map(lambda score: round(score, 6)), min_size=2, max_size=5, unique=True))
def test_of_five_candidates_or_fewer_it_is_the_worst(scores):
    spread = max(scores) - min(scores)
    pick = sweet_spot(scores)
    assert scores[pick] == min(scores) or scores[pick] - min(scores) < 1e-6 * spread


def test_rejected_is_not_the_lowest_where_that_lies_too_far_below():
    pair = picked(candidates(prompt="Q?"))
    assert sides(pair) == ["answer 1", "answer 3"]
    assert (pair.rewards.chosen, pair.rewards.rejected, pair.rewards.all) == (1.0, -1.9, tuple(SCORES))
    assert sides(FORMATS["candidates"].convert(candidates(prompt="Q?"))) == ["answer 1", "answer 2"]


@pytest.mark.parametrize("name", ["candidates", "responses", "judged"])
def test_a_pair_that_the_row_names_is_picked_anew_and_gives_its_prompt(name):
    texts, scores = FORMATS[name].reads[-2:]
    dialogues = to.as_implicit(to.LONG_PAIR)
    row = {"prompt": "a text that the dialogues overrule", **dialogues, texts: TEXTS, scores: SCORES}
    pair = picked(row, name)
    assert sides(pair) == ["answer 1", "answer 3"]
    assert pair.prompt == to.LONG_PAIR["prompt"]
    assert pair.picked


@pytest.mark.parametrize(
    "named",
    [
        {"rejected": to.LONG_PAIR["prompt"] + to.LONG_PAIR["chosen"]},
        {"rejected": [*to.LONG_PAIR["prompt"], to.turn("assistant", " ")]},
    ],
)
def test_named_answers_that_make_no_pair_do_not_matter(named):
    row = candidates(prompt="a text", **{**to.as_implicit(to.LONG_PAIR), **named})
    with pytest.raises(DropRow):
        FORMATS["candidates"].convert(row)
    assert picked(row).prompt == to.LONG_PAIR["prompt"]


@pytest.mark.parametrize("answer", ["same", [to.turn("assistant", "same")]])
def test_a_prompt_beside_named_answers_is_taken(answer):
    wanted = [to.turn("system", "Be brief."), to.turn("user", "Q?")]
    assert picked(candidates(prompt="Q?", system="Be brief.", chosen=answer, rejected=answer)).prompt == wanted
    assert picked(candidates(prompt=wanted, chosen=answer, rejected=answer)).prompt == wanted
    assert picked(candidates(prompt="Q?", system="Be brief.", chosen=answer)).prompt == wanted


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([1.0, 1.0, 1.0], Reason.TIED_REWARDS),
        ([0.0, *[1.0] * 65], Reason.TIED_REWARDS),  # all but one are the best, and nearer to the sweet spot
        ([1e308, -1e308, 0.0], Reason.NON_FINITE_SCORE),
        ([1.0], Reason.TOO_FEW_CANDIDATES),
        ([1.0, None], Reason.NULL_SCORE),
    ],
)
def test_candidates_that_give_no_pair_drop_the_row(scores, reason):
    row = {"prompt": "Q?", "responses": [f"a{i}" for i in range(len(scores))], "rewards": scores}
    with pytest.raises(DropRow, match=reason):
        FORMATS["responses"].convert(row, "sweet-spot")


def read(folder, rows, **flags):
    to.write_jsonl(folder / "a.jsonl", rows)
    wanted = {"rewards": True, "policy_logps": False, "reference_logps": False, **flags}
    source = Source(path=str(folder), pairs="sweet-spot")
    reader, files = open_source(fsspec.filesystem("file"), str(folder), source, **wanted)
    [shard] = plan_shards(files, 100)
    return reader, reader.read(shard)


def test_a_source_read_with_sweet_spot_has_rewards_of_the_picked_pair(tmp_path):
    rows = [candidates(prompt="Q?", reward_chosen=7.0, reward_rejected=6.0), candidates(prompt=None)]
    reader, table = read(tmp_path, rows)
    assert table["reward_chosen"].to_pylist() == [1.0, None]
    assert table["reward_rejected"].to_pylist() == [-1.9, None]
    assert table["rewards_all"][0].as_py() == SCORES
    assert json.dumps(table["rejected"][0].as_py()) == json.dumps([to.turn("assistant", "answer 3")])
    assert table["drop_reason"].to_pylist() == [None, "null_field"]
    assert reader.pairs == "sweet-spot"
    assert inspect_source(fsspec.filesystem("file"), str(tmp_path)).num_pairs == 1


def test_a_format_without_candidates_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"source\.pairs sweet-spot .* of format messages .*candidates, responses"):
        read(tmp_path, [to.pair()], rewards=False)


def test_log_probs_of_the_source_are_refused_as_they_are_of_another_pair(tmp_path):
    logps = dict.fromkeys(("policy_logp_chosen", "policy_logp_rejected"), -1.0)
    counts = dict.fromkeys(("num_tokens_chosen", "num_tokens_rejected"), 3)
    with pytest.raises(ConfigError, match=r"log-probabilities .* that the source holds are not theirs"):
        read(tmp_path, [candidates(prompt="Q?", **logps, **counts)], policy_logps=True)
