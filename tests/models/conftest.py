"""Torch settings and groups of random sequences for the tests of the engines."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.models.packing import Completion


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def groups() -> list[list[Completion]]:
    """Groups of one to three completions, among them a duplicate, a prefix of another and a shared response start."""
    random = np.random.default_rng(7)

    def tokens(count: int) -> np.ndarray:
        return random.integers(3, 400, count).astype(np.int32)

    made = []
    for prompt, responses in [(20, (15, 9)), (1, (4, 30)), (33, (6, 6, 21)), (70, (50, 12)), (12, (8,)), (5, (3, 2))]:
        start = tokens(prompt)
        made.append([Completion(ids=np.concatenate([start, tokens(n)]), start=prompt) for n in responses])
    prompt, answer = tokens(17), tokens(25)
    whole = np.concatenate([prompt, answer])
    made.append([Completion(ids=whole, start=17), Completion(ids=whole, start=17)])
    made.append([Completion(ids=whole[:30], start=17), Completion(ids=whole, start=17)])
    made.append([Completion(ids=whole, start=17), Completion(ids=np.append(whole[:25], tokens(9)), start=17)])
    return made
