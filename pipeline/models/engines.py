"""Engines from their config sections: the model loaded, and scored in the way that the section asks for."""

from pipeline.config import ClassifierReward, TorchModel
from pipeline.models.loading import load_causal_lm, load_classifier
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.rewards import ClassifierEngine


def load_logprob_engine(model: TorchModel) -> LogprobEngine:
    """A causal language model, ready to score completions.

    Raises:
        ModelError: it cannot be loaded, or not be run as asked.
    """
    return LogprobEngine(load_causal_lm(model), model.token_budget, **_ways(model))


def load_classifier_engine(reward: ClassifierReward) -> ClassifierEngine:
    """A reward model, ready to score dialogues. Otherwise as `load_logprob_engine`."""
    return ClassifierEngine(load_classifier(reward), reward.token_budget, **_ways(reward))


def _ways(model: TorchModel) -> dict[str, bool]:
    return {"fp8": model.fp8, "compiled": model.compile, "deterministic": model.deterministic}
