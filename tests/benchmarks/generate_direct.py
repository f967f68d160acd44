"""vLLM's engine called as its users call it, in a process of its own: one call over all prompts."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """What one call took, and gave: texts and token counts, K to a prompt."""

    wall_s: float
    cpu_s: float
    texts: list[list[str]]
    tokens: list[list[int]]


class DirectEngine:
    """An engine that waits in its process for prompts."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Mapping[str, Any]) -> Direct:
        self._connection.send((list(map(list, prompts)), list(seeds), dict(sampling)))
        return self._connection.recv()


@contextmanager
def direct_engine(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[DirectEngine]:
    """The engine with these arguments of `vllm.LLM`; it ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    process = context.Process(target=_serve, args=(theirs, dict(arguments)), daemon=True)
    process.start()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    theirs.close()
    try:
        ours.recv()
        yield DirectEngine(ours)
    finally:
        ours.close()
        process.join(timeout=30)
        process.kill()


def _serve(connection: Connection, arguments: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments)
    connection.send("ready")
    while True:
        try:
            prompts, seeds, sampling = connection.recv()
        except EOFError:
            return
        params = [SamplingParams(seed=seed, **sampling) for seed in seeds]
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        texts = [[sample.text for sample in output.outputs] for output in outputs]
        tokens = [[len(sample.token_ids) for sample in output.outputs] for output in outputs]
        connection.send(Direct(wall_s=wall, cpu_s=cpu, texts=texts, tokens=tokens))
