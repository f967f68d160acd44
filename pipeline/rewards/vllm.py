"""Rewards of a sequence classifier that vLLM runs in the process that scores, for models larger than one GPU."""

from pipeline.config import VllmReward
from pipeline.data.place import Place
from pipeline.models.vllm_engine import environment
from pipeline.rewards.classifier import ClassifierBackend, ClassifierScorer


class VllmBackend(ClassifierBackend[VllmReward]):
    """A reward model with one logit that vLLM knows."""

    def scorer(self, cache: Place | None = None) -> ClassifierScorer:  # noqa: ARG002 - nothing costs money
        """The engine with its weights."""
        from pipeline.models.vllm_rewards import VllmRewardEngine

        return ClassifierScorer(VllmRewardEngine(self.section))

    def env(self) -> dict[str, str]:
        """As vLLM wants it."""
        return environment(self.section.num_threads, self.section.engine_args)
