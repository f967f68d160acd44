"""A job on its way to another process and back."""

from pathlib import Path

import pytest

from pipeline.config import Objective, Storage, Tokens, TorchModel, Train
from pipeline.errors import ConfigError
from pipeline.training.job import TrainJob


def test_a_job_survives_the_way_through_json():
    job = TrainJob(
        datasets=("s3://bucket/a/hf", "/data/b/hf"),
        policy=TorchModel(model="org/name", revision="abc", adapter="/adapter", trust_remote_code=True),
        reference=TorchModel(model="org/base"),
        output=Path("/policies/round-1"),
        settings=Train(method="dpo", adapter="lora", options={"warmup_ratio": 0.1}),
        objective=Objective(name="dpo-norm"),
        tokens=Tokens(chat_template="{{ messages }}\n", max_length=99),
        storage=Storage(endpoint_url="http://localhost:1"),
        merge=False,
    )
    assert TrainJob.from_json(job.model_dump_json()) == job
    bare = TrainJob(datasets=("d",), policy=TorchModel(model="m"), output=Path("o"), settings=Train())
    assert TrainJob.from_json(bare.model_dump_json()) == bare


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "cannot be read"),
        ('{"datasets": ["d"], "output": "o", "polcy": {}}', "polcy: unknown key; did you mean policy"),
        ('{"datasets": ["d"], "output": "o", "policy": {"model": "m"}}', "settings"),
        ('{"datasets": ["d"], "output": "o", "policy": {"model": "m"}, "settings": {"epoch": 1}}', "epoch"),
    ],
)
def test_a_job_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        TrainJob.from_json(text)


def test_beta_is_that_of_the_settings_or_else_of_the_objective():
    job = TrainJob(datasets=(), policy=TorchModel(model="m"), output=Path("o"), settings=Train())
    assert job.beta == 2.0
    assert TrainJob.from_json(job.model_dump_json().replace('"beta":null', '"beta":0.3', 1)).beta == 0.3
