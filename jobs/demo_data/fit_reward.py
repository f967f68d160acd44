"""How reward_head.safetensors was made, and how to make it again: `python -m jobs.demo_data.fit_reward`.

The body stays frozen: each side of a pair is the last hidden state (float32, 576 numbers, after the final norm) of
SmolLM2-135M-Instruct at the last token of the templated dialogue, as a sequence classifier reads it. The head w is
fitted by Bradley-Terry logistic regression, the mean of log(1 + exp(-w . (h_chosen - h_rejected))) plus
l2/2 |w|^2 in units of each feature's spread. The L2 strength is chosen by cross-validation inside the training
prompts; a quarter of the prompts is held out, and the head that ships has never seen them. Its metadata states the
share of held-out pairs that it orders right, in all and by kind of label, beside the rule "the shorter answer wins".
"""

import argparse
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from jobs.demo_data.sample_pairs import read_pairs
from pipeline.demo.models import HEAD_FILE, HEAD_KEY, ensure_smollm2, set_padding
from pipeline.demo.run import PAIRS_FILE

if TYPE_CHECKING:
    from torch import Tensor

_STRENGTHS: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_FOLDS: Final = 5
_HELD_OUT: Final = 0.25

_log = logging.getLogger(__name__)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A head of shape (576,), with the strength of L2 and the accuracies that go into the metadata."""

    weight: Floats
    metadata: dict[str, str]


def prompt_of(pair: dict[str, Any]) -> str:
    """The id of the prompt that a pair belongs to."""
    return str(pair["id"]).rsplit("-", 1)[0]


def split(pairs: Sequence[dict[str, Any]], seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and held-out pairs, split by prompt.

    A training pair with an answer that also stands in a held-out pair is left out of both.
    """
    prompts = sorted({prompt_of(pair) for pair in pairs})
    random.Random(seed).shuffle(prompts)  # noqa: S311 - a split, no secret
    held = set(prompts[: round(_HELD_OUT * len(prompts))])
    test = [i for i, pair in enumerate(pairs) if prompt_of(pair) in held]
    seen = {_text(pairs[i], side) for i in test for side in ("chosen", "rejected")}
    train = [
        i
        for i, pair in enumerate(pairs)
        if prompt_of(pair) not in held and not seen & {_text(pair, "chosen"), _text(pair, "rejected")}
    ]
    return train, test


def last_hidden_states(dialogues: Sequence[list[dict[str, str]]], model_dir: Path, batch_tokens: int = 4096) -> Floats:
    """Last hidden state of each dialogue, shape (dialogues, 576), float32 arithmetic."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    set_padding(tokenizer)
    texts = [tokenizer.apply_chat_template(d, tokenize=False) for d in dialogues]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    states = np.zeros((len(ids), model.config.hidden_size))
    while order:
        batch = [order.pop()]
        while order and len(ids[batch[0]]) * (len(batch) + 1) <= batch_tokens:
            batch.append(order.pop())
        padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
        with torch.inference_mode():
            hidden: Tensor = model(**padded).last_hidden_state
        last = padded["attention_mask"].sum(dim=1) - 1
        states[batch] = hidden[torch.arange(len(batch)), last].double().numpy()
        _log.info("%d of %d dialogues to go", len(order), len(ids))
    return states


def bradley_terry(differences: Floats, l2: float) -> Floats:
    """The w that minimises the mean of log(1 + exp(-d . w)) + l2/2 |w|^2 over rows d; float64, by L-BFGS."""
    import torch

    data = torch.from_numpy(differences)
    weight = torch.zeros(data.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight], max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimiser.zero_grad()
        value = torch.nn.functional.softplus(-data @ weight).mean() + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach().numpy()


def accuracy(differences: Floats, weight: Floats) -> float:
    """Share of the rows that the head orders as labelled."""
    return float((differences @ weight > 0).mean())


def choose_strength(differences: Floats, prompts: Sequence[str], seed: int) -> float:
    """The L2 strength with the best accuracy over folds that share no prompt; of equals, the strongest."""
    names = sorted(set(prompts))
    random.Random(seed).shuffle(names)  # noqa: S311 - a split, no secret
    fold = np.array([names.index(prompt) % _FOLDS for prompt in prompts])

    def right(strength: float) -> int:
        heads = [bradley_terry(differences[fold != k], strength) for k in range(_FOLDS)]
        return sum(int((differences[fold == k] @ heads[k] > 0).sum()) for k in range(_FOLDS))

    return max(_STRENGTHS, key=lambda strength: (right(strength), strength))


def fit(pairs: Sequence[dict[str, Any]], differences: Floats, seed: int) -> Fit:
    """Fit on the training prompts and measure on the held-out ones. `differences` are h_chosen - h_rejected."""
    train, test = split(pairs, seed)
    spread = differences[train].std(axis=0)
    scaled = differences / np.where(spread > 0, spread, 1.0)
    strength = choose_strength(scaled[train], [prompt_of(pairs[i]) for i in train], seed)
    weight = bradley_terry(scaled[train], strength)
    shorter = [len(_text(pairs[i], "chosen")) < len(_text(pairs[i], "rejected")) for i in test]
    metadata = {
        "held_out_accuracy": f"{accuracy(scaled[test], weight):.3f}",
        "held_out_pairs": str(len(test)),
        "held_out_prompts": str(len({prompt_of(pairs[i]) for i in test})),
        "train_pairs": str(len(train)),
        "train_accuracy": f"{accuracy(scaled[train], weight):.3f}",
        "shorter_wins_accuracy": f"{np.mean(shorter):.3f}",
        "l2": str(strength),
        "seed": str(seed),
    }
    for label in sorted({pairs[i]["label"] for i in test}):
        of_label = [i for i in test if pairs[i]["label"] == label]
        metadata[f"held_out_accuracy_{label}"] = f"{accuracy(scaled[of_label], weight):.3f} of {len(of_label)}"
    return Fit(weight=weight / np.where(spread > 0, spread, 1.0), metadata=metadata)


def _text(pair: dict[str, Any], side: str) -> str:
    return str(pair[side][-1]["content"])


def main(argv: list[str] | None = None) -> None:
    """Fit the head on pairs.jsonl, report what it reaches on held-out prompts, and write it."""
    parser = argparse.ArgumentParser(description="Fit the demo's reward head.")
    parser.add_argument("--pairs", type=Path, default=PAIRS_FILE)
    parser.add_argument("--output", type=Path, default=HEAD_FILE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    import torch
    from safetensors.torch import save_file

    pairs = read_pairs(options.pairs)
    dialogues = [pair["prompt"] + pair[side] for side in ("chosen", "rejected") for pair in pairs]
    chosen, rejected = np.split(last_hidden_states(dialogues, ensure_smollm2()), 2)
    head = fit(pairs, chosen - rejected, options.seed)
    save_file({HEAD_KEY: torch.from_numpy(head.weight).float()[None]}, options.output, metadata=head.metadata)
    for key, value in head.metadata.items():
        _log.info("%s: %s", key, value)


if __name__ == "__main__":
    main()
