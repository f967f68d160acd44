"""How pairs.jsonl was made, and how to make it again: `python -m jobs.demo_data.sample_pairs`.

Dataset card
    content     single-turn English chat pairs over the prompts of prompts.jsonl: everyday questions, explanation,
                facts, writing, arithmetic, code, planning, summaries, and a few with a system turn
    model       both sides are answers of SmolLM2-135M-Instruct (Apache-2.0), unpacked from its wheel, in float32
    sampling    per prompt four answers at temperature 0.8, top_p 0.95, and one at temperature 1.5, top_p 1;
                96 new tokens at most; seeds in `Sampling`. Other hardware or library versions give other draws
    columns     id, prompt, chosen, rejected (message lists) and `label`, which says why chosen is preferred:
                  judge         two answers at 0.8; rules in judge.py, scores at least 0.15 apart
                  temperature   the best answer at 0.8 against the one at 1.5, which is often word salad
                  other_prompt  an answer at 0.8 against an answer to a prompt of another category
    labels      by rule and by construction, not by people: a signal to try the pipeline with, no measure of help
    limits      a 135M model is often wrong, and so are both sides of many pairs; English only
    licence     Apache-2.0

About ten minutes on two CPU cores. `--answers` keeps the raw samples, so that pairs can be made again without sampling.
"""

import argparse
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.demo_data.judge import Answer, judge
from pipeline.demo.models import ensure_smollm2
from pipeline.demo.run import PAIRS_FILE, PROMPTS_FILE

_MIN_GAP: Final = 0.15
_NUM_COOL: Final = 4  # answers a prompt at temperature 0.8; one more is drawn at 1.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt: its messages, and strings that a right answer contains, where they are known."""

    id: str
    category: str
    messages: list[dict[str, str]]
    expect: tuple[str, ...]

    @property
    def question(self) -> str:
        """The user's turn."""
        return self.messages[-1]["content"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of one round, which draws one answer a prompt."""

    seed: int
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 96
    batch_size: int = 57


def rounds(seed: int = 0) -> list[Sampling]:
    """The five rounds of the card: four at temperature 0.8, the last at 1.5."""
    cool = [Sampling(seed=seed + index) for index in range(_NUM_COOL)]
    return [*cool, Sampling(seed=seed + _NUM_COOL, temperature=1.5, top_p=1.0)]


def load_prompts(path: Path = PROMPTS_FILE) -> list[Prompt]:
    """The prompts of the file, in its order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Prompt(id=row["id"], category=row["category"], messages=row["prompt"], expect=tuple(row["expect"]))
        for row in rows
    ]


def read_pairs(path: Path = PAIRS_FILE) -> list[dict[str, Any]]:
    """The rows of pairs.jsonl, in its order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sample_round(prompts: list[Prompt], model_dir: Path, sampling: Sampling) -> list[Answer]:
    """One answer a prompt, drawn with transformers in float32; deterministic for one machine and library version."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    torch.manual_seed(sampling.seed)
    answers: list[Answer] = []
    for start in range(0, len(prompts), sampling.batch_size):
        batch = prompts[start : start + sampling.batch_size]
        texts = [tokenizer.apply_chat_template(p.messages, add_generation_prompt=True, tokenize=False) for p in batch]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(
            **encoded,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
        )
        for row in output[:, encoded["input_ids"].shape[1] :].tolist():
            text = tokenizer.decode(row, skip_special_tokens=True).strip()
            answers.append(Answer(text=text, finished=tokenizer.eos_token_id in row))
        _log.info("seed %d: %d of %d prompts answered", sampling.seed, len(answers), len(prompts))
    return answers


def make_pairs(prompts: list[Prompt], drawn: list[list[Answer]], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of pairs.jsonl. `drawn` holds one list a round, in the order of `prompts`; the last round is the hot one.

    Empty sides and pairs of equal texts are left out.
    """
    rng = random.Random(seed)  # noqa: S311 - a choice of examples, no secret
    *cool_rounds, hot = drawn
    for index, prompt in enumerate(prompts):
        cool = [answers[index] for answers in cool_rounds]
        score = {answer: judge(prompt.question, answer, prompt.expect) for answer in cool}
        ranked = sorted(cool, key=lambda answer: (-score[answer], answer.text))
        others = [i for i, other in enumerate(prompts) if other.category != prompt.category]
        foreign = rng.choice(cool_rounds)[rng.choice(others)]
        candidates = [
            *(("judge", a, b) for a, b in _outside_in(ranked) if score[a] - score[b] >= _MIN_GAP),
            ("temperature", ranked[0], hot[index]),
            ("other_prompt", ranked[1], foreign),
        ]
        usable = [(label, a, b) for label, a, b in candidates if a.text and b.text and a.text != b.text]
        for number, (label, chosen, rejected) in enumerate(usable, 1):
            yield {
                "id": f"{prompt.id}-{number}",
                "prompt": prompt.messages,
                "chosen": [{"role": "assistant", "content": chosen.text}],
                "rejected": [{"role": "assistant", "content": rejected.text}],
                "label": label,
            }


def _outside_in(ranked: list[Answer]) -> list[tuple[Answer, Answer]]:
    return [(ranked[i], ranked[-1 - i]) for i in range(len(ranked) // 2)]


def _load_or_draw(prompts: list[Prompt], kept: Path | None, seed: int) -> list[list[Answer]]:
    if kept is not None and kept.is_file():
        rows = json.loads(kept.read_text(encoding="utf-8"))
        return [[Answer(text=text, finished=finished) for text, finished in one_round] for one_round in rows]
    model_dir = ensure_smollm2()
    drawn = [sample_round(prompts, model_dir, sampling) for sampling in rounds(seed)]
    if kept is not None:
        kept.write_text(json.dumps([[(a.text, a.finished) for a in answers] for answers in drawn]), encoding="utf-8")
    return drawn


def main(argv: list[str] | None = None) -> None:
    """Sample the answers and write the pairs."""
    parser = argparse.ArgumentParser(description="Sample the demo's preference pairs from SmolLM2-135M-Instruct.")
    parser.add_argument("--output", type=Path, default=PAIRS_FILE)
    parser.add_argument("--answers", type=Path, help="keep the raw answers here, and use them if they are there")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prompts = load_prompts()
    rows = list(make_pairs(prompts, _load_or_draw(prompts, options.answers, options.seed), options.seed))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    options.output.write_text("".join(lines), encoding="utf-8")
    _log.info("%d pairs of %d prompts in %s", len(rows), len(prompts), options.output)


if __name__ == "__main__":
    main()
