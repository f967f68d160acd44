"""The demo's data as it ships, and the rule that turns sampled answers into pairs."""

import json
from collections import Counter
from pathlib import Path

import pytest

from jobs.demo_data.judge import Answer
from jobs.demo_data.sample_pairs import (
    Prompt,
    Sampling,
    load_prompts,
    make_pairs,
    read_pairs,
    sample_round,
)
from pipeline.demo.run import PAIRS_FILE, PROMPTS_FILE


def test_prompts_are_distinct_and_end_with_the_user() -> None:
    prompts = load_prompts()
    assert len({p.id for p in prompts}) == len({json.dumps(p.messages) for p in prompts}) == len(prompts) >= 100
    assert all(p.messages[-1]["role"] == "user" for p in prompts)
    assert sum(p.messages[0]["role"] == "system" for p in prompts) >= 5


def test_shipped_pairs_are_whole_and_belong_to_the_prompts() -> None:
    prompts = {p.id: p.messages for p in load_prompts()}
    pairs = read_pairs()
    assert len({pair["id"] for pair in pairs}) == len(pairs) >= 300
    for pair in pairs:
        assert pair["prompt"] == prompts[pair["id"].rsplit("-", 1)[0]]
        texts = [pair[side][0]["content"] for side in ("chosen", "rejected")]
        assert all(texts)
        assert texts[0] != texts[1]
        assert [m["role"] for m in pair["chosen"] + pair["rejected"]] == ["assistant", "assistant"]
    assert set(Counter(pair["label"] for pair in pairs)) == {"judge", "temperature", "other_prompt"}


def test_demo_data_stays_small() -> None:
    assert PAIRS_FILE.stat().st_size + PROMPTS_FILE.stat().st_size < 1_000_000


def test_make_pairs_prefers_what_the_judge_prefers_and_says_why() -> None:
    prompts = [
        Prompt(id=f"{c}-1", category=c, messages=[{"role": "user", "content": "Why does ice float?"}], expect=())
        for c in ("a", "b")
    ]
    good, fair = "Ice floats because it is less dense.", "Ice can float; one may wonder why it"
    loop, empty = "no no no no no no no no no", ""
    drawn = [[Answer(text=f"{text}{n}", finished=text == good) for n in ("", " Yes.")] for text in (loop, good, fair)]
    drawn.append([Answer(text=empty, finished=True), Answer(text="word salad", finished=False)])
    drawn.append([Answer(text="hot hot", finished=False), Answer(text="", finished=True)])
    rows = {row["id"]: row for row in make_pairs(prompts, drawn)}
    first = [row for row in rows.values() if row["id"].startswith("a-1")]
    assert {row["label"] for row in first} == {"judge", "temperature", "other_prompt"}
    assert next(r for r in first if r["label"] == "temperature")["chosen"][0]["content"] == good
    for row in rows.values():
        assert "" not in {row["chosen"][0]["content"], row["rejected"][0]["content"]}
        if row["label"] == "judge":
            assert row["chosen"][0]["content"].startswith((good, fair))
    assert "temperature" not in {row["label"] for row in rows.values() if row["id"].startswith("b-1")}


@pytest.mark.soak
@pytest.mark.smollm2
def test_sampling_repeats_with_the_same_seed(smollm2_dir: Path) -> None:
    prompts = load_prompts()[:3]

    def draw(seed: int) -> list[Answer]:
        return sample_round(prompts, smollm2_dir, Sampling(seed=seed, max_new_tokens=8))

    assert draw(1) == draw(1) != draw(2)
