"""Policy, reference and reward: backends, GPUs and what does not go together."""

import pytest

from pipeline.config import Run, parse_config, resolved
from pipeline.errors import ConfigError
from tests.config.sections import assert_refused, changed

VLLM = {"backend": "vllm", "model": "m"}


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (changed(policy={"model": "m", "dtyp": "x"}), ["policy.dtyp", "did you mean dtype?"]),
        (changed(reward={"backend": "classifier"}), ["reward.model", "required"]),
        (changed(policy={"backend": "vlm", "model": "m"}), ["policy", "torch", "columns"]),
        (changed(policy=None), ["metric potential", "add a policy section"]),
        (changed(reward=None), ["metric potential", "add a reward section"]),
        (changed(policy={"backend": "columns"}, reference={"model": "m"}), ["policy.backend columns", "both"]),
        (changed(policy={"model": "m", "num_gpus": -1}), ["policy.num_gpus"]),
        (
            changed(policy={"model": "m", "replicas": [8, 2]}),
            ["policy.replicas: wanted the smaller number first", "[2, 8]"],
        ),
        (changed(policy={"model": "m", "replicas": "2-8"}), ["policy.replicas: wanted a whole number", "a list of 2"]),
        (
            changed(reward={"model": "m"}),
            ["reward.model: not used with backend columns; set reward.backend: classifier"],
        ),
        (
            changed(policy={"backend": "columns", "adapter": "a"}),
            ["policy.adapter: not used with backend columns; set policy.backend: torch"],
        ),
        (
            changed(policy={"model": "m", "engine_args": {}}),
            ["policy.engine_args: not used with backend torch; set", "vllm"],
        ),
        (changed(policy={"model": "m", "engine_arg": {}}), ["did you mean engine_args, with backend: vllm?"]),
        (changed(policy={**VLLM, "engine_arg": {}}), ["policy.engine_arg: unknown key; did you mean engine_args?"]),
        (changed(policy={"backend": "columns", "engine_args": {}}), ["not used with backend columns", "backend: vllm"]),
        (changed(policy={**VLLM, "adapter": "a"}), ["policy.adapter: backend vllm scores no adapters; merge"]),
        (changed(policy={**VLLM, "fp8": True}), ["policy.fp8: backend vllm has its own: set engine_args"]),
        (changed(policy={**VLLM, "compile": True}), ["policy.compile: backend vllm compiles by itself"]),
        (changed(policy={**VLLM, "deterministic": True}), ["policy.deterministic: backend vllm batches as it likes"]),
        *(
            (
                changed(policy={"model": "m", name: True}, reference={"model": "m"}),
                [f"{name} must be the same for policy and reference"],
            )
            for name in ("fp8", "compile", "deterministic")
        ),
        (changed(policy={**VLLM, "engine_args": {"dtype": "float16"}}), ["policy.engine_args: dtype cannot be given"]),
        (changed(policy={**VLLM, "engine_args": {"tensor_parallel_size": "2"}}), ["whole numbers of at least 1"]),
        (changed(policy={**VLLM, "engine_args": {"tensor_parallel_size": 4}}), ["num_gpus: auto", "set num_gpus: 4"]),
        (changed(policy={**VLLM, "num_gpus": 2}), ["num_gpus: 2.0 does not fit", "tensor_parallel_size"]),
        (changed(policy={**VLLM, "backend": "vlm"}), ["policy.backend: 'vlm' is unknown; wanted torch or vllm or col"]),
        (changed(reward={"backend": "function", "function": "f"}), ["reward.function: wanted package.module:name"]),
        (changed(reward={"backend": "function", "function": "a:f", "per": 1}), ["reward.per: unknown key"]),
        (changed(reward={"backend": "classifer"}), ["reward.backend: 'classifer' is unknown; wanted columns or class"]),
        (changed(policy="m"), ["policy: wanted a section such as {model: ...} (got 'm')"]),
    ],
)
def test_bad_model_section_names_key_and_remedy(config: dict, parts: list[str]):
    assert_refused(config, parts)


def test_number_of_gpus_is_told_in_one_line():
    with pytest.raises(ConfigError) as error:
        parse_config(changed(policy={"model": "m", "num_gpus": "x"}))
    assert str(error.value).splitlines()[1:] == ["  policy.num_gpus: wanted auto or a number of at least 0 (got 'x')"]


@pytest.mark.parametrize(
    ("num_gpus", "engine_args"),
    [
        ("auto", {}),
        (0.5, {}),
        (0, {"tensor_parallel_size": 2}),
        (4, {"tensor_parallel_size": 4, "max_num_seqs": 8}),
        (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
    ],
)
def test_vllm_gets_a_gpu_for_each_part_of_the_model(num_gpus, engine_args):
    config = parse_config(changed(policy={**VLLM, "num_gpus": num_gpus, "engine_args": engine_args}))
    assert parse_config(resolved(config)) == config
    assert config.torch_models()["policy"].num_gpus == num_gpus
    assert config.policy.token_budget == 2048


def test_backend_may_be_left_out():
    config = parse_config(changed(reward={}))
    assert (config.policy.backend, config.reward.backend) == ("torch", "columns")


@pytest.mark.parametrize(
    ("engine", "address", "runs_models", "on_ray"),
    [
        ("auto", None, True, True),
        ("auto", None, False, False),
        ("auto", "10.0.0.1:6379", False, True),
        ("auto", "local", False, False),
        ("ray", None, False, True),
        ("plain", "10.0.0.1:6379", True, False),
    ],
)
def test_ray_works_where_models_run_or_a_cluster_is_named(engine, address, runs_models, on_ray, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert Run(engine=engine, address=address).on_ray(runs_models=runs_models) == on_ray
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert Run(engine=engine).on_ray(runs_models=runs_models) == on_ray
