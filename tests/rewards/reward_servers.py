"""Servers of reward models for tests: the shapes of vLLM, SGLang, OpenRLHF and text-embeddings-inference (TEI).

They are stand-ins: the numbers come from a real classifier, the HTTP server is a small one of ours, and requests and
answers have the recorded or documented shapes. `python -m tests.rewards.reward_servers PORT TABLE LOG LAST` serves a
table of rewards in vLLM's shape from a process of its own, which kills itself (-9) in the middle of request LAST.
"""

import json
import math
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.rewards.service import Asked, Reply, Service

Ids = tuple[int, ...]


class RewardServer(Service):
    """Serves rewards. Counts in `paid` how often each sequence of token ids was answered well.

    fault: a reply in place of the good one, given the request and the ids in it; None for none.
    """

    def __init__(
        self,
        kind: str,
        reward: Callable[[Ids], float],
        encode: Callable[[str], list[int]] | None = None,
        *,
        port: int = 0,
        keeps_sigmoid: bool = False,
    ) -> None:
        super().__init__(self._answered, port)
        self.kind, self.reward, self.encode, self.keeps_sigmoid = kind, reward, encode, keeps_sigmoid
        self.paid: Counter[Ids] = Counter()
        self.fault: Callable[[Asked, list[Ids]], Reply | None] = lambda asked, rows: None
        self.model = "a"
        self._one_at_a_time = threading.Lock()

    def _answered(self, asked: Asked) -> Reply:
        if asked.body is None:
            return Reply({"model_path": self.model, "model_id": self.model, "model_sha": None})
        rows, wants_raw = self._read(asked)
        with self._one_at_a_time:
            scores = [self.reward(row) for row in rows]
            wrong = self.fault(asked, rows)
            if wrong is None:
                self.paid.update(rows)
        if not wants_raw or self.keeps_sigmoid:
            scores = [1 / (1 + math.exp(-score)) for score in scores]
        return wrong or Reply(self.shape(scores))

    def _read(self, asked: Asked) -> tuple[list[Ids], bool]:
        body, encode = asked.body, self.encode or (lambda text: [])
        if self.kind == "vllm":
            assert (asked.path, body["model"]) == ("/classify", "rm")
            return [tuple(row) for row in body["input"]], body.get("use_activation") is False
        if self.kind == "sglang":
            assert asked.path == "/classify"
            return [tuple(row) for row in body["input_ids"]], True
        if self.kind == "openrlhf":
            assert asked.path == "/get_reward"
            return [tuple(encode(text)) for text in body["query"]], True
        assert asked.path == "/predict"
        return [tuple(encode(text)) for [text] in body["inputs"]], body["raw_scores"]

    def shape(self, scores: Sequence[float | None]) -> Any:
        """The answer with these numbers."""
        if self.kind == "vllm":
            entries = [
                {"index": i, "label": "LABEL_0", "probs": [score], "num_classes": 1} for i, score in enumerate(scores)
            ]
            return {"object": "list", "model": "rm", "data": entries[::-1], "usage": {}}
        if self.kind == "sglang":
            return [{"embedding": [score], "meta_info": {}} for score in scores]
        if self.kind == "openrlhf":
            return {"rewards": scores, "scores": scores, "extra_logs": {"dummy_scores": scores}}
        return [[{"score": score, "label": "LABEL_0"}] for score in scores]


class _Logged(Counter[Ids]):
    """Counts, and writes each sequence to a file at once, which outlives the process."""

    def __init__(self, log: Path) -> None:
        self._file = log.open("a")
        super().__init__()

    def update(self, rows: Any = (), /) -> None:  # type: ignore[override]
        self._file.writelines(json.dumps(row) + "\n" for row in rows or ())
        self._file.flush()


def main() -> None:
    """Serve a table."""
    port, table, log, last = sys.argv[1:]
    rewards = {tuple(row): reward for row, reward in json.loads(Path(table).read_text())}
    server = RewardServer("vllm", rewards.__getitem__, port=int(port))
    server.paid = _Logged(Path(log))

    def killed(asked: Asked, _: list[Ids]) -> None:
        if asked.number == int(last):
            os.kill(os.getpid(), signal.SIGKILL)

    server.fault = killed
    server.serve_forever(0.01)


if __name__ == "__main__":
    main()
