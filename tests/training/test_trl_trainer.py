"""Real TRL steps on tiny models: what is trained, on which tokens, and what is saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline import score, select
from pipeline.config import Objective, Tokens, TorchModel
from pipeline.errors import AlignpotError, ConfigError, DataError, SchemaError, SourceError
from pipeline.models import loading
from pipeline.models.fingerprints import model_fingerprint
from pipeline.training.pairs import load_pairs, read_pairs
from pipeline.training.run import run
from tests.models.trl_reference import trl_tokens
from tests.training.conftest import message, rows, save, scored

DPO = {"method": "dpo", "objective": Objective(name="dpo", beta=0.1)}


def digest(folder: Path) -> str:
    return model_fingerprint(TorchModel(model=str(folder), dtype="float32"))["weights"]


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_simpo_starts_from_the_margins_that_were_scored_and_changes_the_weights(make_job, tmp_path, tiny_model_dir):
    """The tiny template ends in a newline after EOS, where TRL's own CPO tokens would have a second EOS."""
    data = scored(rows(), tiny_model_dir("llama"), role="policy")
    job = make_job(datasets=(save(data, tmp_path / "scored"),), batch_size=8)
    summary = run(job)
    margins = [
        2.0
        * (
            row["policy_logp_chosen"] / row["num_tokens_chosen"]
            - row["policy_logp_rejected"] / row["num_tokens_rejected"]
        )
        for row in data
    ]
    assert summary["reward_margin"][0] == pytest.approx(np.mean(margins), abs=1e-4)
    assert summary["loss"][0] == pytest.approx(np.mean(np.log1p(np.exp(0.5 - np.array(margins)))), abs=1e-4)
    assert summary["loss"][1] < summary["loss"][0]
    assert summary["reward_margin"][1] > summary["reward_margin"][0]
    before, after = weights(job.policy.model), weights(job.output)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The models that are loaded, in order."""
    names: list[str] = []
    load = loading.load_causal_lm

    def noted(section: TorchModel) -> Any:
        names.append(section.model)
        return load(section)

    monkeypatch.setattr(loading, "load_causal_lm", noted)
    return names


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_dpo_with_scored_reference_equals_dpo_that_runs_it(adapter, make_job, tmp_path, tiny_model_dir, loads):
    reference = tiny_model_dir("llama", seed=1)
    data = (save(scored(rows(), reference), tmp_path / "scored"),)
    shared = {**DPO, "datasets": data, "reference": TorchModel(model=str(reference)), "adapter": adapter, "rank": 4}
    loads.clear()
    scored_before = run(make_job("scored", **shared))
    assert loads == [str(tiny_model_dir("llama"))]
    run_anew = run(make_job("anew", precomputed_reference=False, **shared))
    assert loads[1:] == [str(tiny_model_dir("llama")), str(reference)]
    assert (scored_before["precomputed_reference"], run_anew["precomputed_reference"]) == (True, False)
    assert scored_before["loss"] == pytest.approx(run_anew["loss"], abs=1e-4)
    assert scored_before["reward_margin"] == pytest.approx(run_anew["reward_margin"], abs=1e-4)
    assert abs(scored_before["reward_margin"][0]) > 0.01  # the policy is not the reference


def test_dpo_without_reference_compares_with_the_policy_as_it_was(make_job):
    summary = run(make_job(**DPO, precomputed_reference=False, batch_size=8))
    assert summary["loss"][0] == pytest.approx(np.log(2), abs=1e-6)
    assert summary["loss"][1] < summary["loss"][0]


def test_reference_log_probs_of_other_tokens_are_refused(make_job, tmp_path, tiny_model_dir):
    data = (save(scored(rows(), tiny_model_dir("llama")), tmp_path / "scored"),)
    with pytest.raises(DataError, match="sums over other tokens"):
        run(make_job(**DPO, datasets=data, tokens=Tokens(max_length=24)))


def test_reference_log_probs_of_the_paper_preset_are_not_used(make_job, tmp_path, tiny_model_dir, loads, capsys):
    data = (save(scored(rows(), tiny_model_dir("llama")), tmp_path / "scored"),)
    loads.clear()
    tokens = Tokens(preset="paper", max_length=64, max_prompt_length=32)
    assert run(make_job(**DPO, datasets=data, tokens=tokens))["precomputed_reference"] is False
    assert len(loads) == 2
    assert "tokens.preset paper" in capsys.readouterr().err


def test_missing_reference_log_probs_are_refused(make_job, tmp_path, tiny_model_dir):
    with pytest.raises(SchemaError, match=r"lacks reference_logp_chosen.*precomputed_reference: false"):
        run(make_job(**DPO))
    data = scored(rows(), tiny_model_dir("llama"))
    data[3]["reference_logp_rejected"] = None
    with pytest.raises(DataError, match="p3 has no reference log-probs"):
        run(make_job(**DPO, datasets=(save(data, tmp_path / "null"),)))


def test_lora_is_merged_into_a_plain_model(make_job, tiny_model_dir):
    job = make_job(adapter="lora", rank=4, learning_rate=1e-2)
    run(job)
    assert not [path for path in job.output.iterdir() if "adapter" in path.name]
    model, info = AutoModelForCausalLM.from_pretrained(job.output, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor([[1, 50, 60, 70]])
    before = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    with torch.inference_mode():
        assert not torch.allclose(before(ids).logits, model(ids).logits, atol=1e-3)


def test_the_output_is_a_whole_model_without_pickles(make_job):
    job = make_job(policy=TorchModel(model=make_job().policy.model, dtype="bfloat16"))
    run(job)
    names = {path.name for path in job.output.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "training.json",
    }  # fmt: skip
    assert {tensor.dtype for tensor in weights(job.output).values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(job.output)
    before = AutoModelForCausalLM.from_pretrained(job.policy.model)
    same = ("pad_token_id", "eos_token_id", "bos_token_id", "use_cache", "vocab_size")
    assert [getattr(model.config, name) for name in same] == [getattr(before.config, name) for name in same]
    assert model.config.dtype == torch.bfloat16
    trained = TorchModel(model=str(job.output))
    loading.check_same_tokenizer(loading.load_tokenizer(job.policy), loading.load_tokenizer(trained))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"adapter": "lora", "rank": 4}, marks=pytest.mark.soak),
        pytest.param({**DPO, "precomputed_reference": False}, marks=pytest.mark.soak),
    ],
)
def test_the_same_job_gives_the_same_weights_and_another_seed_others(changes, make_job):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(make_job(name, seed=seed, **changes))
    folder = make_job().output.parent
    assert digest(folder / "a") == digest(folder / "b") != digest(folder / "c")


def test_a_policy_with_an_adapter_is_trained_on_top_of_it(make_job, tmp_path, tiny_model_dir):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    policy = TorchModel(model=str(tiny_model_dir("llama")), dtype="float32", adapter=str(tmp_path / "adapter"))
    job = make_job(policy=policy, learning_rate=1e-9)
    run(job)
    name = "model.layers.0.self_attn.q_proj.weight"
    merged = adapted.merge_and_unload().get_parameter(name)
    torch.testing.assert_close(weights(job.output)[name], merged.detach(), atol=1e-6, rtol=1e-5)


def test_pairs_of_several_datasets_are_taken_once_each(make_job, tmp_path):
    first, second = save(rows(4), tmp_path / "first"), save([*rows(4), *rows(3, start=10)], tmp_path / "second")
    assert run(make_job(datasets=(first, second), max_steps=1))["rows"] == 7


def test_rows_that_a_subset_holds_out_are_not_trained_on(make_job, tmp_path):
    pairs = [
        {**row, "reward_chosen": float(i), "reward_rejected": 0.0, "prompt": message("user", f"question {i}")}
        for i, row in enumerate(rows(24))
    ]
    subset = select(score(pairs, reward="columns"), metric="explicit", fraction=1.0, split={"test": 0.3})
    subset.write(tmp_path / "subset")
    found = read_pairs(make_job(datasets=(f"{tmp_path}/subset/hf",)), tmp_path / "scratch")
    assert [*found["prompt"]] == [*subset.to_datasets()["train"]["prompt"]]
    assert 0 < len(found) < 24


def test_pairs_that_cannot_be_trained_on_are_left_out_and_counted(make_job, tmp_path):
    long = rows(1, start=20)[0]
    long["prompt"][0]["content"] = "What is the answer? " * 40
    summary = run(make_job(datasets=(save([*rows(4), long], tmp_path / "long"),), max_steps=1))
    assert (summary["rows"], summary["rows_left_out"]) == (4, 1)
    with pytest.raises(SourceError, match=r"None of 1 pairs can be trained on.*max_length"):
        run(make_job("none", datasets=(save([long], tmp_path / "only"),)))


def test_trl_reads_tool_calls_and_arguments_of_templates_as_they_were_scored(make_job, tmp_path, tiny_model_dir):
    data = rows(3)
    data[0]["chosen"][0] |= {"content": None, "tool_calls": '[{"function": {"name": "f", "arguments": {"x": 1}}}]'}
    data[1]["rejected"][0] |= {"reasoning_content": "Hm."}
    data = [{**row, "chat_template_kwargs": '{"mode": "short"}' if row is data[2] else None} for row in data]
    template = "{{ mode }}{% for m in messages %}{{ m | tojson }}{% endfor %}{{ eos_token }}"
    job = make_job(datasets=(save(data, tmp_path / "chats"),), tokens=Tokens(chat_template=template))
    tokenizer = loading.load_tokenizer(job.policy)
    tokenizer.chat_template = template
    pairs, _ = load_pairs(job, tokenizer, tmp_path / "scratch", with_reference=False)
    theirs = trl_tokens(tokenizer, pairs, tmp_path / "trl", max_length=2048)
    assert len(theirs) == 3
    for ours, row in zip(pairs, theirs, strict=True):
        assert ours["chosen_ids"] == row["prompt_ids"] + row["chosen_ids"]
        assert ours["rejected_ids"] == row["prompt_ids"] + row["rejected_ids"]


def test_data_that_holds_no_pairs_is_refused(make_job, tmp_path):
    with pytest.raises(SchemaError, match="lacks chosen, rejected; it has id, prompt"):
        run(make_job(datasets=(save([{"id": "a", "prompt": rows(1)[0]["prompt"]}], tmp_path / "prompts"),)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no dataset that save_to_disk wrote"):
        run(make_job(datasets=(str(tmp_path / "empty"),)))
    with pytest.raises(AlignpotError, match="absent: not there"):
        run(make_job(datasets=(str(tmp_path / "absent"),)))


def test_the_data_folder_is_left_as_it_was(make_job, tmp_path):
    job = make_job(**DPO, precomputed_reference=False, max_steps=1)
    before = sorted(path.name for path in (tmp_path / "hf").rglob("*"))
    run(job)
    assert sorted(path.name for path in (tmp_path / "hf").rglob("*")) == before


@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_options_are_those_of_trl(method, make_job):
    def refused(**options: Any) -> str:
        with pytest.raises(ConfigError) as error:
            run(make_job(method=method, options=options))
        return str(error.value)

    assert "warmup_stepz is no argument of TRL's" in refused(warmup_stepz=1)
    assert "Did you mean warmup_steps?" in refused(warmup_stepz=1)
    assert "learning_rate is decided by other settings" in refused(learning_rate=1)
    assert "do not fit TRL's" in refused(lr_scheduler_type="straight")
    job = make_job("warm", method=method, precomputed_reference=False, options={"warmup_steps": 2}, max_steps=1)
    run(job)  # the first step of a warm-up has a rate of 0
    assert weights(job.output).keys() == weights(job.policy.model).keys()
    assert all(torch.equal(new, weights(job.policy.model)[name]) for name, new in weights(job.output).items())


def test_a_loss_that_is_no_number_ends_the_training(make_job):
    job = make_job(learning_rate=1e30, max_steps=3, options={"max_grad_norm": 0.0})
    with pytest.raises(AlignpotError, match=r"diverged.*learning_rate"):
        run(job)
    assert not job.output.exists()


def test_an_objective_without_beta_needs_one_in_the_settings(make_job):
    with pytest.raises(ConfigError, match=r"orpo has no beta.*train\.beta"):
        run(make_job(objective=Objective(name="orpo")))
    assert run(make_job(objective=Objective(name="orpo"), beta=2.0, max_steps=1))["steps"] == 1


@pytest.mark.soak
@pytest.mark.smollm2
def test_smollm2_learns_pairs_and_is_saved_as_it_came(make_job, smollm2_dir, tmp_path):
    from jobs.demo_data.sample_pairs import read_pairs

    pairs = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in read_pairs()[:8]]
    job = make_job(
        datasets=(save(pairs, tmp_path / "demo"),),
        policy=TorchModel(model=str(smollm2_dir), dtype="float32"),
        tokens=Tokens(max_length=128),
        learning_rate=1e-5,
        max_steps=2,
        batch_size=2,
    )
    summary = run(job)
    assert summary["steps"] == 2
    trained = TorchModel(model=str(job.output), dtype="float32")
    loading.check_same_tokenizer(loading.load_tokenizer(job.policy), loading.load_tokenizer(trained))
    model = AutoModelForCausalLM.from_pretrained(job.output)
    before = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    assert model.generation_config.to_dict() == before.generation_config.to_dict()
    ids = loading.load_tokenizer(trained).apply_chat_template(pairs[0]["prompt"], add_generation_prompt=True)
    ids = torch.tensor([ids["input_ids"] if hasattr(ids, "keys") else ids])
    with torch.inference_mode():
        assert not torch.allclose(model(ids).logits, before(ids).logits, atol=1e-3)
