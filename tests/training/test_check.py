"""What is refused before anything is generated, and that looking changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Objective, TorchModel, Train
from pipeline.errors import ConfigError, ModelError
from pipeline.training.job import TrainJob, check_training

COMMAND = {"method": "command", "command": ("sh", "{dataset}", "{output}")}


def job(policy: TorchModel | None = None, objective: str = "simpo", **settings) -> TrainJob:
    """A job of which nothing is there: no data, no model."""
    return TrainJob(
        datasets=(),
        policy=policy or TorchModel(model="no/such-model"),
        output=Path("/no/such/place"),
        settings=Train(**settings),
        objective=Objective(name=objective),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": 2}, "num_gpus is 2; methods dpo and simpo train on one GPU"),
        ({"method": "dpo", "num_gpus": 1.5}, "num_gpus is 1.5"),
        ({"objective": "orpo"}, r"orpo has no beta.*train\.beta"),
        ({"options": {"warmup_stepz": 1}}, r"warmup_stepz is no argument.*Did you mean warmup_steps\?"),
        ({"options": {"simpo_gamma": 1}}, "simpo_gamma is decided by other settings"),
        ({"method": "dpo", "options": {"trust_remote_code": True}}, "trust_remote_code is decided"),
        ({**COMMAND, "policy": TorchModel(model="m", adapter="a")}, "adapter merged"),
        ({**COMMAND, "policy": TorchModel(model="m", revision="v2")}, "leaves out policy.adapter and policy.revision"),
        ({**COMMAND, "command": ("no-such-trainer", "{dataset}", "{output}")}, "no program no-such-trainer on PATH"),
    ],
)
def test_a_training_that_cannot_start_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_training(job(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "dpo", "options": {"warmup_steps": 2, "gradient_checkpointing": False}},
        {"objective": "orpo", "beta": 2.0},
        {**COMMAND, "num_gpus": 8, "objective": "orpo"},
        {**COMMAND, "command": ("./train.sh", "{dataset}", "{output}")},
    ],
)
def test_a_training_that_can_start_passes_without_data_or_model(changes):
    check_training(job(**changes))


@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_without_trl_the_remedy_is_named(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setitem(sys.modules, "trl.experimental.cpo", None)
    with pytest.raises(ModelError, match=r"pip install 'alignpot\[trainers\]'"):
        check_training(job(method=method))
    check_training(job(**COMMAND))


@pytest.mark.slow
def test_looking_leaves_the_environment_and_the_gpu_alone():
    text = (
        "import os; before = dict(os.environ)\n"
        "from tests.training.test_check import job; from pipeline.training.job import check_training\n"
        "check_training(job()); import torch\n"
        "assert dict(os.environ) == before, set(os.environ) ^ set(before)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=Path(__file__).parents[2], env=dict(os.environ), check=False
    )
    assert done.returncode == 0
