"""What is part of a fingerprint: the keys that can move a result, and no other."""

import pytest

from pipeline.config import (
    ClassifierReward,
    Generate,
    Objective,
    Output,
    Run,
    Select,
    SelfPlayConfig,
    Source,
    Storage,
    Tokens,
    TorchModel,
    Train,
    VllmModel,
    parse_self_play,
)

PLAY = {
    "path": "/p",
    "prompts": {"path": "/q"},
    "policy": {"model": "m"},
    "reward": {"backend": "classifier", "model": "r"},
}
LAYOUT = {"num_cpus": 2, "num_threads": 3, "replicas": (2, 4), "accelerator_type": "L4"}
LAYOUT_ARGUMENTS = {
    "disable_custom_all_reduce": True,
    "distributed_executor_backend": "mp",
    "enforce_eager": True,
    "gpu_memory_utilization": 0.5,
    "kv_cache_memory_bytes": 1 << 30,
    "max_num_batched_tokens": 4096,
    "max_num_seqs": 8,
    "pipeline_parallel_size": 2,
    "swap_space": 1,
    "tensor_parallel_size": 2,
}


def reward(**keys):
    return ClassifierReward(backend="classifier", model="m", **keys)


def vllm(**keys):
    return VllmModel(backend="vllm", model="m", **keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TorchModel(model="m"), TorchModel(model="m", token_budget=1, num_gpus=2, **LAYOUT)),
        (TorchModel(model="a"), TorchModel(model="b", revision="r", adapter="c", adapter_revision="d")),
        (vllm(), vllm(token_budget=1, **LAYOUT)),
        (vllm(), vllm(num_gpus=4, engine_args=LAYOUT_ARGUMENTS)),
        (Generate(), Generate(shard_prompts=1, num_gpus=4, engine_args=LAYOUT_ARGUMENTS, **LAYOUT)),
        (Run(), Run(engine="plain", shard_rows=1, max_dropped=1, track="module:function")),
        (Storage(), Storage(region="r", max_attempts=1)),
        (Tokens(), Tokens(max_prompt_length=1)),
        (Tokens(preset="paper"), Tokens(preset="paper", truncation="keep_end")),
        (Tokens(template="none"), Tokens(template="none", chat_template="{{ 1 }}", template_kwargs={"mode": 1})),
        (Train(), Train(num_gpus=1, num_threads=2, policies="/p")),
        (Select(k=1), Select(k=1, engine="plain", stats_from="/s.json")),
        (Output(path="/a"), Output(path="/b", rows_per_file=1, formats=("parquet", "hf"), hub="org/name")),
        (Source(path="/a"), Source(path="/b")),
    ],
    ids=lambda section: type(section).__name__,
)
def test_layout_and_places_are_no_part_of_it(one, other):
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        *((TorchModel(model="m"), TorchModel(model="m", **{name: True}), name) for name in ("fp8", "compile")),
        (TorchModel(model="m"), TorchModel(model="m", dtype="float16"), "dtype"),
        (TorchModel(model="m", trust_remote_code=True), TorchModel(model="m"), "trust_remote_code"),
        (TorchModel(model="m"), vllm(), "backend"),
        (vllm(), vllm(engine_args={"quantization": "fp8"}), "engine_args"),
        (Generate(), Generate(engine_args={"quantization": "fp8"}), "engine_args"),
        (Generate(), Generate(seed=1), "seed"),
        (Tokens(), Tokens(truncation="keep_end"), "truncation"),
        (Tokens(preset="paper"), Tokens(preset="paper", max_prompt_length=9), "max_prompt_length"),
        (Tokens(), Tokens(template_kwargs={"enable_thinking": False}), "template_kwargs"),
        (Tokens(), Tokens(template="none"), "template"),
        (Tokens(), Tokens(chat_template="{{ 1 }}"), "chat_template"),
        (reward(), reward(chat_template="{{ 1 }}"), "chat_template"),
        (Objective(), Objective(beta=3), "beta"),
        (Train(), Train(options={"warmup_steps": 1}), "options"),
        (Select(k=1), Select(k=2), "k"),
        (Output(path="/a"), Output(path="/a", slim=True), "slim"),
        (Source(path="/a"), Source(path="/a", pairs="sweet-spot"), "pairs"),
        (ClassifierReward(backend="classifier", model="m"), TorchModel(model="m"), "max_length"),
    ],
)
def test_what_can_move_a_result_is_part_of_it(one, other, key):
    before, after = one.fingerprint(), other.fingerprint()
    assert before.get(key) != after.get(key)


def test_keys_that_were_added_later_are_no_part_of_it_where_they_are_not_set():
    assert {"template", "template_kwargs"}.isdisjoint(Tokens().fingerprint())
    assert "chat_template" not in reward().fingerprint()


def test_the_budget_is_part_of_it_where_it_is_the_shape_of_every_forward():
    one, other = (TorchModel(model="m", deterministic=True, token_budget=budget) for budget in (1024, 2048))
    assert one.fingerprint()["token_budget"] != other.fingerprint()["token_budget"]
    assert "token_budget" not in TorchModel(model="m").fingerprint()


def play(**sections) -> SelfPlayConfig:
    return parse_self_play({**PLAY, **sections})


def test_a_run_of_self_play_is_not_another_for_its_layout_rounds_selection_and_training():
    sections = {"rounds": 3, "run": {"shard_rows": 1}, "select": {"k": 5}, "train": {"seed": 1}, "path": "/elsewhere"}
    assert play(**sections).fingerprint() == play().fingerprint()
    assert {"tokens", "objective", "metric", "pair", "evolve", "evaluate", "generate", "prompts"} == {
        *play().fingerprint()
    }


@pytest.mark.parametrize(
    "section",
    [
        {"pair": {"seed": 1}},
        {"evolve": None},
        {"evaluate": {"seed": 1}},
        {"generate": {"top_p": 1}},
        {"prompts": {"path": "/q", "limit": 9}},
    ],
)
def test_a_run_of_self_play_is_another_for_what_moves_its_results(section):
    [name] = section
    assert play(**section).fingerprint()[name] != play().fingerprint()[name]
