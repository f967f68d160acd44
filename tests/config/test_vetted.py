"""What is vetted: the configs of jobs/, and the self-play of the demo."""

from pathlib import Path

import pytest

from pipeline.config import load_config, load_self_play, parse_self_play
from pipeline.data.sealed import differences
from pipeline.demo.run import self_play_demo_config

CONFIGS = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_vetted_config_parses(path: Path):
    load = load_self_play if path.stem.endswith("self_play") else load_config
    assert load(path).policy is not None


MODELS_SIZES_AND_RESOURCES = {
    "path", "prompts.path", "prompts.format", "prompts.id_column", "policy", "reward", "train.policies",
    "tokens.max_length", "tokens.max_prompt_length", "objective.beta", "select.fraction",
    "generate.num_responses", "generate.max_tokens", "generate.num_gpus", "generate.num_cpus", "generate.num_threads",
    "generate.replicas", "generate.shard_prompts", "evolve.per_prompt", "evolve.max_tokens",
    "train.learning_rate", "train.gamma", "train.epochs", "train.batch_size", "train.accumulate", "train.adapter",
    "train.rank", "train.num_gpus", "train.num_threads", "train.dtype",
    "evaluate.num_prompts", "evaluate.num_responses", "run.shard_rows", "run.max_dropped",
}  # fmt: skip


def test_the_demos_self_play_is_the_papers_but_for_models_sizes_and_resources(tmp_path: Path):
    paper = load_self_play(Path(__file__).parents[2] / "jobs" / "configs" / "paper_self_play.yaml")
    demo = parse_self_play(self_play_demo_config(tmp_path, tmp_path / "policy", tmp_path / "reward"))
    differing = {name for name, _, _ in differences(paper.model_dump(mode="json"), demo.model_dump(mode="json"))}
    unexpected = {name for name in differing if not {name, name.split(".")[0]} & MODELS_SIZES_AND_RESOURCES}
    assert unexpected == set()


def test_vetted_configs_are_there():
    assert CONFIGS
