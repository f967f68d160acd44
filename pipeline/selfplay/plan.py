"""The stages of a self-play round that hold a model: what they are called, and how each is built in its own process.

    prompts --generate--> candidates --tokenise, annotate--> annotated candidates
    tasks   --evolve----> new prompts

As in `pipeline.steps.plan`, nothing is loaded before `Stage.build`.
"""

from functools import partial
from typing import Any, Final

from pipeline.config import ClassifierReward, Evolve, Generate, SelfPlayConfig, Tokens, TorchModel
from pipeline.steps.plan import Apply, Stage

# Room that the instructions of the strategies take in a request, beside the prompt to be rewritten.
_INSTRUCTION_TOKENS: Final = 1024


def generate_stage(config: SelfPlayConfig, policy: TorchModel, generate: Generate | None = None) -> Stage:
    """Prompts to candidates, by a policy. Default of `generate`: that of the config."""
    generate = config.generate if generate is None else generate
    build = partial(_build_generate, generate, config.tokens, policy)
    return Stage(name="generate", build=build, model=generate, env=environment(generate))


def evolve_stage(config: SelfPlayConfig, policy: TorchModel) -> Stage:
    """Tasks to new prompts, by a policy in the engine that also answers prompts; needs the section evolve."""
    assert config.evolve is not None  # noqa: S101
    evolve = config.evolve
    changes = {
        "num_responses": 1,
        "temperature": evolve.temperature,
        "top_p": evolve.top_p,
        "max_tokens": evolve.max_tokens,
        "max_prompt_tokens": config.generate.max_prompt_tokens + _INSTRUCTION_TOKENS,
    }
    generate = config.generate.model_copy(update=changes)
    build = partial(_build_evolve, evolve, generate, config.tokens, policy)
    return Stage(name="evolve", build=build, model=generate, env=environment(generate))


def annotate_stages(config: SelfPlayConfig) -> list[Stage]:
    """Candidates to annotated candidates, by the reward model."""
    return [
        Stage(name="tokenise", build=partial(_build_tokenise, config.reward, config.tokens)),
        Stage(name="annotate", build=partial(_build_annotate, config.reward), model=config.reward),
    ]


def evaluation(config: SelfPlayConfig) -> Generate:
    """How held-out prompts are answered: as all prompts are, with what the section `evaluate` sets."""
    section = config.evaluate
    changes = {"num_responses": section.num_responses, "temperature": section.temperature, "seed": section.seed}
    max_tokens = config.generate.max_tokens if section.max_tokens is None else section.max_tokens
    return config.generate.model_copy(update={**changes, "max_tokens": max_tokens})


def environment(generate: Generate) -> dict[str, str]:
    """Environment variables that a process with the sampling engine must have from its start; the user's own win."""
    if generate.engine != "vllm":
        return {}
    from pipeline.models import vllm_engine

    return vllm_engine.environment(generate.num_threads, generate.engine_args)


def _build_generate(generate: Generate, tokens: Tokens, policy: TorchModel) -> Apply:
    from pipeline.selfplay.candidates import GenerateCandidates

    return GenerateCandidates(*_answering(generate, tokens, policy, generate.system_prompt), generate)


def _build_evolve(evolve: Evolve, generate: Generate, tokens: Tokens, policy: TorchModel) -> Apply:
    from pipeline.selfplay.evolve import EvolvePrompts

    return EvolvePrompts(*_answering(generate, tokens, policy, None), generate, evolve)


def _answering(generate: Generate, tokens: Tokens, policy: TorchModel, system_prompt: str | None) -> tuple[Any, Any]:
    """The policy in its engine, and how it reads prompts."""
    from pipeline.selfplay.candidates import PromptRenderer
    from pipeline.selfplay.sampler import load_decoder, open_sampler

    decoder = load_decoder(policy)
    longest = generate.max_prompt_tokens
    if decoder.context is not None:
        longest = min(longest, decoder.context - 1)  # room for an answer
    renderer = PromptRenderer(decoder.tokenizer, tokens, longest, system_prompt)
    return open_sampler(policy, generate), renderer


def _build_tokenise(reward: ClassifierReward, tokens: Tokens) -> Apply:
    from pipeline.models.loading import load_tokenizer
    from pipeline.models.prompts import DialogueTokenizer
    from pipeline.selfplay.annotate import TokeniseResponses

    return TokeniseResponses(DialogueTokenizer(load_tokenizer(reward), reward.max_length, tokens.date))


def _build_annotate(reward: ClassifierReward) -> Apply:
    from pipeline.models.rewards import ClassifierEngine
    from pipeline.selfplay.annotate import AnnotateResponses

    return AnnotateResponses(ClassifierEngine.load(reward))
