"""The stages of a self-play round that hold a model: what they are called, and how each is built where it shall live.

    prompts --generate--> candidates --tokenise, annotate--> annotated candidates
    tasks   --evolve----> new prompts

As in `pipeline.steps.score_stages`: nothing is loaded before `Stage.build`.
"""

from functools import partial
from typing import Final

from pipeline.config import ClassifierReward, Evolve, Generate, SelfPlayConfig, Tokens, TorchModel
from pipeline.errors import ConfigError
from pipeline.selfplay.engines import environment
from pipeline.steps.work import Apply, Stage

# Room that the instructions of the strategies take in a request, beside the prompt that is to be rewritten.
_INSTRUCTION_TOKENS: Final = 1024


def generate_stage(config: SelfPlayConfig, policy: TorchModel, generate: Generate | None = None) -> Stage:
    """Prompts to candidates, by a policy; `generate` left out is that of the config."""
    generate = config.generate if generate is None else generate
    return Stage(
        name="generate",
        build=partial(_build_generate, generate, config.tokens, policy),
        model=generate,
        env=environment(generate),
    )


def evaluation(config: SelfPlayConfig) -> Generate:
    """How held-out prompts are answered: as all prompts are, with what the section `evaluate` sets."""
    section = config.evaluate
    changes = {"num_responses": section.num_responses, "temperature": section.temperature, "seed": section.seed}
    max_tokens = config.generate.max_tokens if section.max_tokens is None else section.max_tokens
    return config.generate.model_copy(update={**changes, "max_tokens": max_tokens})


def evolve_stage(config: SelfPlayConfig, policy: TorchModel) -> Stage:
    """Tasks to new prompts, by a policy in the engine that also answers prompts.

    Raises:
        ConfigError: the config has no section evolve.
    """
    if config.evolve is None:
        raise ConfigError(
            "evolve: null says that no new prompts are made; the stage that makes them needs the section."
        )
    length = config.generate.max_prompt_tokens + _INSTRUCTION_TOKENS
    generate = config.generate.model_copy(update={"max_prompt_tokens": length, "max_tokens": config.evolve.max_tokens})
    return Stage(
        name="evolve",
        build=partial(_build_evolve, config.evolve, generate, config.tokens, policy),
        model=generate,
        env=environment(generate),
    )


def annotate_stages(config: SelfPlayConfig) -> list[Stage]:
    """Candidates to annotated candidates, by the reward model."""
    return [
        Stage(name="tokenise", build=partial(_build_tokenise, config.reward, config.tokens)),
        Stage(name="annotate", build=partial(_build_annotate, config.reward), model=config.reward),
    ]


def _build_generate(generate: Generate, tokens: Tokens, policy: TorchModel) -> Apply:
    from pipeline.selfplay.candidates import GenerateCandidates, PromptRenderer
    from pipeline.selfplay.decoding import load_decoder
    from pipeline.selfplay.engines import open_sampler

    decoder = load_decoder(policy)
    renderer = PromptRenderer(decoder.tokenizer, tokens, generate.system_prompt)
    longest = decoder.longest_prompt(generate.max_prompt_tokens)
    return GenerateCandidates(open_sampler(policy, generate), renderer, generate, longest)


def _build_evolve(evolve: Evolve, generate: Generate, tokens: Tokens, policy: TorchModel) -> Apply:
    from pipeline.selfplay.ask import EvolvePrompts
    from pipeline.selfplay.candidates import PromptRenderer
    from pipeline.selfplay.decoding import load_decoder
    from pipeline.selfplay.engines import open_sampler

    decoder = load_decoder(policy)
    renderer = PromptRenderer(decoder.tokenizer, tokens, None)
    longest = decoder.longest_prompt(generate.max_prompt_tokens)
    return EvolvePrompts(open_sampler(policy, generate), renderer, evolve, longest)


def _build_tokenise(reward: ClassifierReward, tokens: Tokens) -> Apply:
    from pipeline.models.loading import load_tokenizer
    from pipeline.models.prompts import DialogueTokenizer
    from pipeline.selfplay.annotate import TokeniseResponses

    return TokeniseResponses(DialogueTokenizer(load_tokenizer(reward), reward.max_length, tokens.date))


def _build_annotate(reward: ClassifierReward) -> Apply:
    from pipeline.models.rewards import ClassifierEngine
    from pipeline.selfplay.annotate import AnnotateResponses

    return AnnotateResponses(ClassifierEngine.load(reward))
