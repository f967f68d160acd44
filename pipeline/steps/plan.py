"""Which stages a config asks for, in order, and how to build each one where its model shall live.

    tokenise -> reward -> policy -> reference

`score_stages` only describes; weights are loaded by `Stage.build`, in the actor or loop that will run the stage.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import pyarrow as pa

from pipeline.config import ClassifierReward, Config, Replicas, TorchModel, VllmModel
from pipeline.drops import StageName

Apply = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a shard: what it is called, how it is built, and the model that wants a place to live."""

    name: StageName
    build: Callable[[], Apply]
    model: Replicas | None = None
    """The section that says how many replicas, CPUs and GPUs its model gets; null for a stage without one."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that its process must have from the start, where it gets one of its own."""


def score_stages(config: Config) -> list[Stage]:
    """The stages that fill the score columns which the source does not hold already."""
    stages: list[Stage] = []
    models = config.torch_models()
    if models:
        stages.append(Stage(name="tokenise", build=partial(_build_tokenise, config)))
    reward = models.get("reward")
    if isinstance(reward, ClassifierReward):
        stages.append(Stage(name="reward", build=partial(_build_reward, reward), model=reward))
    roles: tuple[Literal["policy", "reference"], ...] = ("policy", "reference")
    stages.extend(_logprob_stage(models[role], role, config.tokens.max_length) for role in roles if role in models)
    return stages


def _logprob_stage(model: TorchModel, role: Literal["policy", "reference"], max_length: int) -> Stage:
    if not isinstance(model, VllmModel):
        return Stage(name=role, build=partial(_build_logprobs, model, role), model=model)
    from pipeline.models.vllm_engine import environment

    env = environment(model.num_threads, model.engine_args)
    return Stage(name=role, build=partial(_build_vllm_logprobs, model, role, max_length), model=model, env=env)


def _build_tokenise(config: Config) -> Apply:
    from pipeline.models.loading import load_tokenizer
    from pipeline.models.prompts import DialogueTokenizer, PairTokenizer
    from pipeline.steps.tokenise import TokeniseDialogues, TokenisePairs

    steps: list[Apply] = []
    models = config.torch_models()
    pair_model = models.get("policy") or models.get("reference")
    if pair_model is not None:
        steps.append(TokenisePairs(PairTokenizer(load_tokenizer(pair_model), config.tokens)))
    reward = models.get("reward")
    if isinstance(reward, ClassifierReward):
        steps.append(
            TokeniseDialogues(DialogueTokenizer(load_tokenizer(reward), reward.max_length, config.tokens.date))
        )
    return partial(_apply_all, steps)


def _apply_all(steps: list[Apply], table: pa.Table) -> pa.Table:
    for step in steps:
        table = step(table)
    return table


def _build_reward(reward: ClassifierReward) -> Apply:
    from pipeline.models.rewards import ClassifierEngine
    from pipeline.steps.score_stages import ScoreRewards

    return ScoreRewards(ClassifierEngine.load(reward))


def _build_logprobs(model: TorchModel, role: Literal["policy", "reference"]) -> Apply:
    from pipeline.models.logprobs import LogprobEngine
    from pipeline.steps.score_stages import ScoreLogprobs

    return ScoreLogprobs(LogprobEngine.load(model), role)


def _build_vllm_logprobs(model: VllmModel, role: Literal["policy", "reference"], max_length: int) -> Apply:
    from pipeline.models.vllm_logprobs import VllmLogprobEngine
    from pipeline.steps.score_stages import ScoreLogprobs

    return ScoreLogprobs(VllmLogprobEngine(model, max_length), role)
