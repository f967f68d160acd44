"""Which sampling engine a config asks for, and how it is opened."""

from pipeline.config import Generate, TorchModel
from pipeline.errors import ConfigError
from pipeline.selfplay.sampler import Sampler


def open_sampler(model: TorchModel, generate: Generate) -> Sampler:
    """Load a model into the engine that `generate` names.

    Raises:
        ConfigError: engine_args are given to an engine that takes none.
        ModelError: the engine is not installed, or cannot run the model.
    """
    if generate.engine == "vllm":
        from pipeline.selfplay.vllm_sampler import VllmSampler

        return VllmSampler(model, generate)
    if generate.engine_args:
        raise ConfigError("generate.engine_args are arguments of vLLM; generate.engine: transformers takes none.")
    from pipeline.selfplay.transformers_sampler import TransformersSampler

    return TransformersSampler(model, generate)


def environment(generate: Generate) -> dict[str, str]:
    """Environment variables that a process which opens the engine must have from its start."""
    if generate.engine != "vllm":
        return {}
    from pipeline.selfplay.vllm_sampler import engine_environment

    return engine_environment(generate)
