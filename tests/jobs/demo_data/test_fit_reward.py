"""The fit of the demo's reward head: on made-up features, and as the classifier that it becomes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jobs.demo_data.fit_reward import bradley_terry, choose_strength, fit, last_hidden_states, split
from jobs.demo_data.sample_pairs import read_pairs
from pipeline.demo.models import HEAD_FILE, HEAD_KEY, build_reward_model


def made_up(num_prompts: int) -> list[dict[str, Any]]:
    def side(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return [
        {"id": f"p-{i}-{j}", "chosen": side(f"good {i} {j}"), "rejected": side(f"bad {i} {j}"), "label": "judge"}
        for i in range(num_prompts)
        for j in (1, 2)
    ]


def test_bradley_terry_finds_the_direction_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=8)
    differences = rng.normal(size=(2000, 8))
    differences *= np.where(rng.random(2000) < 1 / (1 + np.exp(-differences @ truth)), 1, -1)[:, None]
    weight = bradley_terry(differences, 1e-6)
    np.testing.assert_allclose(weight, truth, atol=0.25)


def test_bradley_terry_is_at_a_minimum_and_shrinks_with_l2() -> None:
    differences = np.random.default_rng(1).normal(loc=0.3, size=(60, 5))
    weak, strong = (bradley_terry(differences, l2) for l2 in (0.01, 1.0))
    gradient = -(differences / (1 + np.exp(differences @ weak))[:, None]).mean(axis=0) + 0.01 * weak
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert np.linalg.norm(strong) < np.linalg.norm(weak)


def test_split_shares_no_prompt_and_no_answer() -> None:
    pairs = made_up(20)
    pairs[0]["rejected"] = pairs[-1]["chosen"]
    for seed in range(10):
        train, test = split(pairs, seed)
        assert {pairs[i]["id"].rsplit("-", 1)[0] for i in train}.isdisjoint(
            pairs[i]["id"].rsplit("-", 1)[0] for i in test
        )
        texts = [
            {pairs[i][side][0]["content"] for i in part for side in ("chosen", "rejected")} for part in (train, test)
        ]
        assert texts[0].isdisjoint(texts[1])
        assert len({pairs[i]["id"].rsplit("-", 1)[0] for i in test}) == 5


def test_fit_says_that_a_head_on_noise_is_worth_nothing() -> None:
    pairs = made_up(200)
    noise = np.random.default_rng(0).normal(size=(400, 20))
    metadata = fit(pairs, noise, seed=0).metadata
    assert 0.3 < float(metadata["held_out_accuracy"]) < 0.7
    assert metadata["held_out_pairs"] == "100"


def test_fit_undoes_the_scaling_of_the_features() -> None:
    pairs = made_up(60)
    differences = np.random.default_rng(2).normal(loc=0.4, size=(120, 6))
    scales = np.array([1e-3, 1, 10, 1, 1, 1e4])
    plain, scaled = fit(pairs, differences, 0), fit(pairs, differences * scales, 0)
    np.testing.assert_allclose(scaled.weight * scales, plain.weight, rtol=1e-4)
    assert scaled.metadata == plain.metadata


def test_choose_strength_regularises_noise_hard() -> None:
    noise = np.random.default_rng(3).normal(size=(40, 200))
    signal = noise.copy()
    signal[:, 0] = 3.0
    prompts = [f"p{i // 2}" for i in range(40)]
    assert choose_strength(signal, prompts, 0) >= 0.003


@pytest.mark.soak
@pytest.mark.smollm2
def test_reward_model_scores_as_the_head_was_fitted(smollm2_dir: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = build_reward_model(smollm2_dir, tmp_path)
    assert build_reward_model(smollm2_dir, tmp_path) == directory
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]
    dialogues = [pair["prompt"] + pair[side] for pair in read_pairs()[:3] for side in ("chosen", "rejected")]
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [tokenizer.apply_chat_template(d, tokenize=False) for d in dialogues]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits[:, 0].numpy()
    expected = last_hidden_states(dialogues, smollm2_dir) @ load_file(HEAD_FILE)[HEAD_KEY][0]
    np.testing.assert_allclose(logits, expected, atol=1e-3)
