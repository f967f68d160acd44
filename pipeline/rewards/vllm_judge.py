"""A chat model as judge that vLLM runs in the process that scores: a server's answers without the server."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.config import Tokens, VllmJudgeReward
from pipeline.data.place import Place
from pipeline.models.fingerprints import model_fingerprint, pinned
from pipeline.models.loading import load_configuration, load_tokenizer
from pipeline.models.templates import check_template
from pipeline.models.vllm_engine import environment
from pipeline.rewards.cache import Cache
from pipeline.rewards.http import BadAnswer, Failed
from pipeline.rewards.judge import JudgeScorer, JudgingBackend

if TYPE_CHECKING:  # this loads torch
    from pipeline.models.vllm_chat import VllmChat

T = TypeVar("T")


class VllmJudgeBackend(JudgingBackend[VllmJudgeReward]):
    """A judge with weights of its own."""

    def check(self, tokens: Tokens, columns: Sequence[str]) -> None:
        """Check prompt, files and template, without loading weights. Raises a ConfigError or ModelError."""
        super().check(tokens, columns)
        check_template(load_tokenizer(self.section), None, remedy="Name a model that was trained to chat.")
        load_configuration(self.section)

    def fingerprint(self) -> dict[str, Any]:
        """Digests or commits of its files, with the decisive keys and the prompt."""
        return model_fingerprint(self.section) | self.prompt_fingerprint()

    def pinned(self, fingerprint: Mapping[str, Any]) -> VllmJudgeReward:
        """The section at the commits that were fingerprinted."""
        return pinned(self.section, fingerprint)

    def scorer(self, cache: Place | None = None) -> JudgeScorer:  # noqa: ARG002 - nothing costs money
        """The engine with its weights."""
        from pipeline.models.vllm_chat import VllmChat

        return JudgeScorer(self.section, InProcess(VllmChat(self.section)), Cache(None, {}))

    def env(self) -> dict[str, str]:
        """As vLLM wants it."""
        return environment(self.section.num_threads, self.section.engine_args)


class InProcess:
    """Asks an engine in this process as `Client` asks a service."""

    def __init__(self, engine: "VllmChat") -> None:
        self._engine = engine

    def ask(self, path: str, bodies: Sequence[Any], read: Callable[[int, Any], T]) -> Iterator[tuple[int, T | Failed]]:
        """As `Client.ask`, whatever the path. Raises as the engine."""
        del path
        for index, answer in enumerate(self._engine.complete(bodies)):
            try:
                yield index, Failed(answer) if isinstance(answer, str) else read(index, answer)
            except BadAnswer as error:
                yield index, Failed(str(error))

    def close(self) -> None:
        """End the engine."""
        self._engine.close()
