"""Margins against TRL's own loss code, given the same log-probabilities; no model runs."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config import Objective
from pipeline.metrics import implicit_margin
from tests.metrics.tables import scored_table

NUM_PAIRS = 12
NUM_PROMPT = 3
SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def table():
    """Pairs with log-ratios of about one unit, so that no loss is flat."""
    rng = np.random.default_rng(3)
    columns = {}
    for side in SIDES:
        counts = rng.integers(2, 12, NUM_PAIRS)
        policy = -counts * rng.uniform(0.05, 1.5, NUM_PAIRS)
        columns |= {
            f"num_tokens_{side}": counts,
            f"policy_logp_{side}": policy,
            f"reference_logp_{side}": policy - rng.normal(0.0, 1.0, NUM_PAIRS),
        }
    return scored_table(**columns)


def column(table, name):
    return table.column(name).to_numpy()


def logsigmoid(x):
    return -np.logaddexp(0.0, -x)


def bare(trainer_class, **settings):
    """A trainer with the attributes that its loss reads and no model."""
    from accelerate import Accelerator

    trainer = trainer_class.__new__(trainer_class)
    defaults = {
        "accelerator": Accelerator(cpu=True), "model": SimpleNamespace(training=False), "aux_loss_enabled": False,
        "precompute_ref_logps": True, "_metrics": {"eval": defaultdict(list)}, "_total_train_tokens": 0,
    }  # fmt: skip
    for name, value in (defaults | settings).items():
        setattr(trainer, name, value)
    return trainer


def scored(table, row):
    """Completion mask of one pair, chosen and rejected, and a model that answers with its log-probs per token."""
    torch = pytest.importorskip("torch")
    counts = [int(column(table, f"num_tokens_{side}")[row]) for side in SIDES]
    mask = torch.zeros(2, NUM_PROMPT + max(counts), dtype=torch.long)
    logps = torch.zeros(2, mask.shape[1] - 1, dtype=torch.float64)
    for i, (side, count) in enumerate(zip(SIDES, counts, strict=True)):
        mask[i, NUM_PROMPT : NUM_PROMPT + count] = 1
        logps[i, NUM_PROMPT - 1 : NUM_PROMPT - 1 + count] = column(table, f"policy_logp_{side}")[row] / count
    outputs = SimpleNamespace(
        log_probs=logps, entropy=logps * 0, mean_logits=logps * 0, is_top1=torch.zeros_like(logps, dtype=torch.bool)
    )
    return mask, lambda **_: outputs


def references(table, row):
    torch = pytest.importorskip("torch")
    return {side: torch.tensor([column(table, f"reference_logp_{side}")[row]], dtype=torch.float64) for side in SIDES}


def dpo_losses(table, **settings):
    """DPOTrainer's loss of every pair on its own."""
    trl = pytest.importorskip("trl")
    defaults = {
        "ld_alpha": None, "use_weighting": False, "f_divergence_type": "reverse_kl", "label_smoothing": 0.0,
        "loss_weights": [1.0],
    }  # fmt: skip
    trainer = bare(trl.DPOTrainer, **(defaults | settings))
    losses = []
    for row in range(NUM_PAIRS):
        mask, model = scored(table, row)
        inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
        inputs |= {f"ref_{side}_logps": value for side, value in references(table, row).items()}
        losses.append(trainer._compute_loss(model, inputs, False).item())
    return np.array(losses)


@pytest.mark.parametrize(
    ("objective", "trl_settings", "loss"),
    [
        (Objective(name="dpo", beta=0.7), {"loss_types": ["sigmoid"]}, lambda m: -logsigmoid(m)),
        (Objective(name="slic", beta=0.7), {"loss_types": ["hinge"]}, lambda m: np.maximum(0.0, 1.0 - m)),
        (Objective(name="ipo"), {"loss_types": ["ipo"]}, lambda m: (m - 1 / 1.4) ** 2),
        (Objective(name="dpo-norm", beta=0.7), {"loss_types": ["sigmoid_norm"]}, lambda m: -logsigmoid(m)),
        (
            Objective(name="f-dpo-forward-kl", beta=0.7),
            {"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"},
            lambda m: -logsigmoid(m),
        ),
        (
            Objective(name="f-dpo-js", beta=0.7),
            {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"},
            lambda m: -logsigmoid(m),
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Objective) else "",
)
def test_dpo_trainer_has_the_same_margins(table, objective, trl_settings, loss):
    losses = dpo_losses(table, beta=0.7, **trl_settings)
    assert losses == pytest.approx(loss(implicit_margin(table, objective)), abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "loss_type", "alpha", "loss"),
    [
        (Objective(name="cpo", beta=0.7), "sigmoid", 0.0, lambda m: -logsigmoid(m)),
        (Objective(name="simpo", beta=0.7), "simpo", 0.0, lambda m: -logsigmoid(m - 0.3)),
        (Objective(name="alphapo", beta=0.7, alpha=0.25), "simpo", 0.25, lambda m: -logsigmoid(m - 0.3)),
        (Objective(name="alphapo", beta=0.7, alpha=-0.5), "simpo", -0.5, lambda m: -logsigmoid(m - 0.3)),
        (Objective(name="rrhf"), "ipo", 0.0, lambda m: (m - 1 / 1.4) ** 2),
    ],
    ids=lambda value: value.name if isinstance(value, Objective) else "",
)
def test_cpo_trainer_has_the_same_margins(table, objective, loss_type, alpha, loss):
    torch = pytest.importorskip("torch")
    cpo = pytest.importorskip("trl.experimental.cpo")
    trainer = bare(cpo.CPOTrainer, beta=0.7, alpha=alpha, simpo_gamma=0.3, label_smoothing=0.0, loss_type=loss_type)
    averaged = loss_type in ("simpo", "ipo")  # as its forward pass hands them over
    logps = [
        torch.from_numpy(
            column(table, f"policy_logp_{side}") / (column(table, f"num_tokens_{side}") if averaged else 1.0)
        )
        for side in SIDES
    ]
    losses = trainer.cpo_loss(*logps)[0].numpy()
    assert losses == pytest.approx(loss(implicit_margin(table, objective)), abs=1e-6)


def test_orpo_trainer_has_the_same_log_odds(table):
    torch = pytest.importorskip("torch")
    orpo = pytest.importorskip("trl.experimental.orpo")
    trainer = bare(orpo.ORPOTrainer, beta=1.0)
    means = [
        torch.from_numpy(column(table, f"policy_logp_{side}") / column(table, f"num_tokens_{side}")) for side in SIDES
    ]
    ours = implicit_margin(table, Objective(name="orpo"))
    assert trainer.odds_ratio_loss(*means)[0].numpy() == pytest.approx(logsigmoid(ours), abs=1e-6)
    for row in range(NUM_PAIRS):
        log_odds = trainer.odds_ratio_loss(*(mean[row : row + 1] for mean in means))[-1].item()
        assert log_odds == pytest.approx(ours[row], rel=1e-5, abs=1e-6)  # TRL computes them in float32


def test_kto_trainer_has_the_same_margins(table):
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl")
    trainer = bare(
        trl.KTOTrainer, beta=0.7, loss_type="kto", calculate_KL=False, desirable_weight=1.0, undesirable_weight=1.0
    )
    for row in range(NUM_PAIRS):
        mask, model = scored(table, row)
        inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
        inputs |= {"label": torch.tensor([True, False]), "ref_logps": torch.cat([*references(table, row).values()])}
        trainer._compute_loss(model, inputs, False)
    rewards = [np.array(trainer._metrics["eval"][f"rewards/{side}"]) for side in SIDES]
    assert rewards[0] - rewards[1] == pytest.approx(implicit_margin(table, Objective(name="kto", beta=0.7)), abs=1e-6)
