"""Tables of prompts for the tests of generation."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.schema import KEPT, PROMPT_SCHEMA

PROMPTS = [
    "What is the answer?",
    "The quick brown fox jumps over what?",
    "Tell me about the weather, in a few short sentences.",
    "Why?",
    "Which answer is better than the other one, and why is that so? Thanks for asking the question.",
]


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prompt_table(prompts: Sequence[str | list[dict[str, str]]] = PROMPTS, *, first: int = 0) -> pa.Table:
    """A row a prompt, with ids p0, p1, ... from `first` on."""
    rows = [
        {
            "id": f"p{first + index}",
            "prompt": messages(prompt) if isinstance(prompt, str) else prompt,
            "parent_id": None,
            "strategy": "seed",
            "round": 0,
            "status": KEPT,
            "drop_stage": None,
            "drop_reason": None,
        }
        for index, prompt in enumerate(prompts)
    ]
    return pa.Table.from_pylist(rows, PROMPT_SCHEMA)
