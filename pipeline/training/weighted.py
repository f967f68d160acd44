"""TRL's trainers made to weigh the loss of each pair by the column `weight` of the dataset.

The weight multiplies the gradient of a pair's log-probabilities, whatever the loss makes of them: 1 trains as TRL does,
0 leaves the pair out. The loss that TRL logs stays the plain one. TRL does not know such a column, so private methods
are replaced here, whose presence and arguments are checked first.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pipeline.errors import ModelError
from pipeline.schema import WEIGHT

_REPLACED: Final[Mapping[str, tuple[str, ...]]] = {
    "_compute_loss": ("self", "model", "inputs", "return_outputs"),
    "_set_signature_columns_if_needed": ("self",),
    "get_batch_loss_metrics": ("self", "model", "batch", "train_eval"),
    "cpo_loss": ("self", "policy_chosen_logps", "policy_rejected_logps"),
}


def weighted_dpo(base: type[Any]) -> type[Any]:
    """A subclass of TRL's DPOTrainer, for datasets with the column. Raises a ModelError as `_checked`."""

    class WeightedDPOTrainer(_checked(base, "_compute_loss", "_set_signature_columns_if_needed")):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.data_collator: Any = _with_weights(self.data_collator)

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            self._signature_columns: list[str] = [*dict.fromkeys([*self._signature_columns, WEIGHT])]

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:  # noqa: FBT001
            weights = inputs[WEIGHT].repeat(2)[:, None]  # chosen answers first, then the rejected ones

            def weighted(**kwargs: Any) -> Any:
                outputs = model(**kwargs)
                outputs.log_probs = _scaled(outputs.log_probs, weights)
                return outputs

            rest = {name: value for name, value in inputs.items() if name != WEIGHT}
            return super()._compute_loss(weighted, rest, return_outputs)

    return WeightedDPOTrainer


def weighted_cpo(base: type[Any]) -> type[Any]:
    """A subclass of TRL's CPOTrainer, for datasets with the column. Raises a ModelError as `_checked`."""

    class WeightedCPOTrainer(_checked(base, "get_batch_loss_metrics", "cpo_loss")):  # type: ignore[misc]
        def get_batch_loss_metrics(self, model: Any, batch: dict[str, Any], train_eval: Any = "train") -> Any:
            self._weights_of_pairs = batch[WEIGHT]
            return super().get_batch_loss_metrics(model, batch, train_eval)

        def cpo_loss(self, policy_chosen_logps: Any, policy_rejected_logps: Any) -> Any:
            weights = policy_chosen_logps.new_tensor(self._weights_of_pairs)
            return super().cpo_loss(_scaled(policy_chosen_logps, weights), _scaled(policy_rejected_logps, weights))

    return WeightedCPOTrainer


def _scaled(logps: Any, weights: Any) -> Any:
    """The same log-probs, whose gradient is multiplied by the weights."""
    fixed = logps.detach()
    return fixed + weights.to(fixed.dtype) * (logps - fixed)


def _with_weights(collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def with_weights(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        return {**collate(examples), WEIGHT: torch.tensor([example[WEIGHT] for example in examples])}

    return with_weights


def _checked(base: type[Any], *methods: str) -> Any:
    """The trainer, if it has these methods with the arguments known; a ModelError if it has not."""
    for name in methods:
        method = getattr(base, name, None)
        found = tuple(inspect.signature(method).parameters) if callable(method) else None
        if found != _REPLACED[name]:
            import trl

            raise ModelError(
                f"TRL {trl.__version__} cannot weigh pairs: {base.__name__}.{name} "
                f"{'is missing' if found is None else f'takes {found}'}, wanted {_REPLACED[name]}. Use TRL 1.16, or "
                f"remove the column {WEIGHT} from the pairs."
            )
    return base
