"""Several rewards of self-play's responses: each is kept raw, and pairs are picked by all of them together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Combine, Pairing, SelfPlayConfig, parse_self_play
from pipeline.errors import ConfigError
from pipeline.schema import annotated_schema
from pipeline.selfplay.combined import compared_with, fit_rewards, one_reward
from pipeline.selfplay.pairing import make_pairs
from pipeline.selfplay.rounds import self_play
from pipeline.steps.annotate import annotate_stages
from pipeline.steps.work import close_stage
from tests.steps.test_annotate import candidate_table
from tests.steps.test_self_play import settings

FUNCTIONS = "tests.rewards.functions"
LENGTH = {"backend": "function", "function": f"{FUNCTIONS}:length", "arguments": {"per": 2.0}}
WORDS = {"backend": "function", "function": f"{FUNCTIONS}:by_word"}
TEXTS = [["a bb", "none here", "ccc dd e", "ffffffff"], ["g h", "", "iiiiiii j", "k l m n"], ["", "", "", ""]]


def play_config(tmp_path: Path, **sections: Any) -> SelfPlayConfig:
    base = {"path": str(tmp_path / "play"), "prompts": {"path": str(tmp_path)}, "policy": {"model": "m"}}
    return parse_self_play({**base, "rewards": {"words": WORDS, "length": LENGTH}, **sections})


def annotated(config: SelfPlayConfig) -> pa.Table:
    table = candidate_table(TEXTS)
    for stage in annotate_stages(config.members, config.tokens, annotated_schema(config.reward_names)):
        apply = stage.build()
        table = apply(table)
        close_stage(apply)
    return table


def test_each_response_gets_each_reward(tmp_path: Path) -> None:
    table = annotated(play_config(tmp_path))
    assert table.schema == annotated_schema(["length", "words"])
    lengths = [[len(text) / 2 if text else None for text in texts] for texts in TEXTS]
    assert table["all_rm_scores_length"].to_pylist() == lengths
    assert table["all_rm_scores_words"].to_pylist() == [[2.0, None, 3.0, 1.0], [2.0, None, 2.0, 4.0], None]
    assert table["drop_reason"].to_pylist() == [None, None, "empty_responses"]


def test_heads_of_one_model_are_rewards_of_their_own(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    directory = tiny_model_dir("llama", classifier=True, seed=4, num_labels=3)
    model = {"backend": "classifier", "model": str(directory), "dtype": "float32", "heads": ["a", "b", "c"]}
    table = annotated(play_config(tmp_path, rewards={"words": WORDS, "model": model}))
    assert table.schema == annotated_schema(["model_a", "model_b", "model_c", "words"])
    for name in "abc":
        [first, second, _] = table[f"all_rm_scores_model_{name}"].to_pylist()
        assert [value is None for value in first] == [False] * 4
        assert [value is None for value in second] == [False, True, False, False]
    assert table["all_rm_scores_model_a"][0].as_py() != table["all_rm_scores_model_b"][0].as_py()


def expected(table: pa.Table) -> list[np.ndarray]:
    """The mean of the deviations from the prompt's mean, each over its root mean square over all prompts."""
    by_name = []
    for name in ("length", "words"):
        rows = [np.array(row, float) for row in table[f"all_rm_scores_{name}"].to_pylist()]
        both = [np.array(row, float) for row in table["all_rm_scores_words"].to_pylist()]
        rows = [np.where(np.isnan(other), np.nan, row) for row, other in zip(rows, both, strict=True)]
        rows = [row - np.nanmean(row) for row in rows]
        scale = np.sqrt(np.nanmean(np.concatenate(rows) ** 2))
        by_name.append([row / scale for row in rows])
    return [(first + second) / 2 for first, second in zip(*by_name, strict=True)]


def test_pairs_are_picked_by_all_rewards_and_hold_each(tmp_path: Path) -> None:
    config = play_config(tmp_path, metric={"combine": "mean"})
    table = annotated(config).slice(0, 2)
    combine = config.combine
    assert combine is not None
    fitted = fit_rewards(table, combine)
    found = one_reward(table, combine, fitted)
    for row, wanted in zip(found["all_rm_scores"].to_pylist(), expected(table), strict=True):
        np.testing.assert_allclose(np.array(row, float), wanted, rtol=1e-12)
    pairs = make_pairs(found, Pairing(), config.reward_names).to_pylist()
    for pair, texts, rewards in zip(pairs, TEXTS, expected(table), strict=False):
        best, worst = int(np.nanargmax(rewards)), int(np.nanargmin(rewards))
        assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (texts[best], texts[worst])
        assert (pair["reward_length_chosen"], pair["reward_length_rejected"]) == (
            len(texts[best]) / 2,
            len(texts[worst]) / 2,
        )
        np.testing.assert_allclose(pair["rewards_all"], sorted(rewards[~np.isnan(rewards)], reverse=True), rtol=1e-12)
        assert "reward_chosen" not in pair
    turned = pa.Table.from_pylist(
        [{name: value[::-1] if isinstance(value, list) and name != "prompt" else value for name, value in row.items()}
         for row in table.to_pylist()], table.schema)  # fmt: skip
    assert fit_rewards(turned, combine) == fitted
    assert make_pairs(one_reward(turned, combine, fitted), Pairing(), config.reward_names).to_pylist() == pairs


def test_policies_are_compared_in_units_of_the_first_ones_answers(tmp_path: Path) -> None:
    table = annotated(play_config(tmp_path)).slice(0, 2)
    found = compared_with(table, table, Combine(members=("length",)))["all_rm_scores"].to_pylist()
    values = np.array([value for row in found for value in row if value is not None])
    assert [values.mean(), values.std()] == pytest.approx([0, 1])
    shifted = table.set_column(
        table.schema.get_field_index("all_rm_scores_length"), "all_rm_scores_length",
        pa.array([[None if v is None else v + 1 for v in row] for row in table["all_rm_scores_length"].to_pylist()]),
    )  # fmt: skip
    raw = [value for row in table["all_rm_scores_length"].to_pylist() for value in row if value is not None]
    better = compared_with(shifted, table, Combine(members=("length",)))["all_rm_scores"].to_pylist()
    assert np.mean([v for row in better for v in row if v is not None]) == pytest.approx(1 / np.std(raw))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"rewards": None}, "needs a reward section"),
        ({"metric": {"combine": {"members": ["other"]}}}, r"reads the rewards \['other'\]"),
        ({"reward": LENGTH}, "reward or rewards, not both"),
    ],
)
def test_rewards_that_do_not_fit_are_refused(tmp_path: Path, sections: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        play_config(tmp_path, **sections)


@pytest.mark.soak
def test_rounds_of_self_play_with_several_rewards(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    given = settings(tmp_path, tiny_model_dir("llama", seed=1), tmp_path, rounds=1)
    several = {
        "reward": None,
        "rewards": {"length": LENGTH, "words": WORDS},
        "metric": {"combine": "min", "weight": 1.0},
    }
    text = "\n".join(self_play(parse_self_play(given | several)))
    assert "held-out reward" in text
    [subset] = (tmp_path / "run").glob("round-1/base/subset/parquet/*.parquet")
    rows = pq.read_table(subset).to_pylist()
    assert rows
    for row in rows:
        assert row["reward_length_chosen"] == len(row["chosen"][0]["content"]) / 2
        assert row["margin_explicit"] is not None
