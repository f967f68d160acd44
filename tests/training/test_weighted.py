"""The column `weight`: real TRL steps in which each pair counts as much as it says."""

import pytest
import torch
from trl import DPOTrainer

from pipeline.config import Objective
from pipeline.errors import DataError, ModelError, SchemaError
from pipeline.training.run import run
from pipeline.training.weighted import weighted_dpo
from tests.training.conftest import rows, save, scored
from tests.training.test_trl_trainer import weights

PLAIN = {"options": {"optim": "sgd", "max_grad_norm": 0.0}, "learning_rate": 1.0, "max_steps": 1}
METHODS = [
    {"method": "simpo"},
    {"method": "dpo", "objective": Objective(name="dpo", beta=0.1), "precomputed_reference": False},
    pytest.param({"method": "dpo", "objective": Objective(name="dpo", beta=0.1)}, marks=pytest.mark.soak),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_weight_multiplies_the_gradient_of_its_pair(method, make_job, tmp_path, tiny_model_dir):
    data = scored(rows(), tiny_model_dir("llama"))

    def trained(name, given, batch_size=8):
        job = make_job(name, datasets=(save(given, tmp_path / name),), batch_size=batch_size, **PLAIN, **method)
        summary = run(job)
        assert summary["weighted"] == ("weight" in given[0])
        return weights(job.output)

    before = weights(tiny_model_dir("llama"))
    plain = trained("plain", data)
    ones = trained("ones", [{**row, "weight": 1.0} for row in data])
    assert all(torch.equal(ones[name], plain[name]) for name in plain)
    # Half of the pairs with weight 0, the others with 2: the mean over 8 is the plain mean over these 4.
    some = trained("some", [{**row, "weight": 2.0 * (i % 2)} for i, row in enumerate(data)])
    alone = trained("alone", data[1::2], batch_size=4)
    change = {name: (alone[name] - before[name]).abs().max() for name in before}
    assert max(change.values()) > 1e-3
    for name in before:
        torch.testing.assert_close(some[name], alone[name], rtol=1e-4, atol=1e-6 + 1e-4 * float(change[name]))


def test_weights_that_are_none_and_datasets_without_them_are_refused(make_job, tmp_path):
    with_weights = [{**row, "weight": 1.0} for row in rows(4)]
    mixed = (save(with_weights, tmp_path / "with"), save(rows(3, start=10), tmp_path / "without"))
    with pytest.raises(SchemaError, match="have a column weight, others have none"):
        run(make_job(datasets=mixed))
    for value in (None, -1.0, float("nan"), float("inf")):
        bad = save([*with_weights[:3], {**with_weights[3], "weight": value}], tmp_path / f"bad-{value}")
        with pytest.raises(DataError, match="Pair p3 has a weight of"):
            run(make_job(datasets=(bad,)))


def test_a_trl_without_the_methods_is_named():
    class Other(DPOTrainer):
        def _compute_loss(self, model, inputs):
            pass

    with pytest.raises(ModelError, match=r"Other\._compute_loss takes.*Use TRL 1\.16"):
        weighted_dpo(Other)
