"""TRL's DPO trainer, made to use the reference log-probs that are in the dataset.

TRL ignores the columns `ref_chosen_logps` and `ref_rejected_logps`, or refuses them, and runs the reference model over
the data again. The trainer here takes them as they are: no reference model is loaded. It replaces one private method of
TRL, whose presence and arguments are checked first.
"""

import functools
import inspect
from typing import Any, Final

from pipeline import schema
from pipeline.errors import DataError, ModelError

REFERENCE_COLUMNS: Final = ("ref_chosen_logps", "ref_rejected_logps")
_METHOD: Final = "_precompute_ref_logps"
_ARGUMENTS: Final = ("self", "dataset", "name", "batch_size")
_TOKENS: Final = {"chosen_ids": schema.NUM_TOKENS_CHOSEN, "rejected_ids": schema.NUM_TOKENS_REJECTED}


@functools.cache
def precomputed_dpo_trainer() -> type[Any]:
    """A subclass of TRL's DPOTrainer, to be used with `precompute_ref_log_probs=True`.

    Without the two columns it runs the reference model, as TRL does. If the dataset says how many tokens the reference
    log-probs are sums over, the trainer's own tokens must be as many.
    """
    base = checked_dpo_trainer()

    class PrecomputedDPOTrainer(base):  # type: ignore[misc, valid-type]
        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            if not {*REFERENCE_COLUMNS} <= {*(dataset.column_names or ())}:
                return super()._precompute_ref_logps(dataset, name, batch_size)
            check_tokens(dataset, self.args.max_length)
            return dataset

    return PrecomputedDPOTrainer


def checked_dpo_trainer() -> type[Any]:
    """TRL's DPOTrainer, if it has the method that is replaced here, with the arguments known.

    Raises:
        ModelError: it has not, or TRL is missing.
    """
    try:
        import trl
    except ImportError:
        raise ModelError("training needs TRL. Run: pip install 'alignpot[trainers]'") from None
    trainer: type[Any] = trl.DPOTrainer
    method = getattr(trainer, _METHOD, None)
    found = tuple(inspect.signature(method).parameters) if callable(method) else None
    if found != _ARGUMENTS:
        raise ModelError(
            f"TRL {trl.__version__} cannot take reference log-probs from the dataset: DPOTrainer.{_METHOD} "
            f"{'is missing' if found is None else f'takes {found}'}, wanted {_ARGUMENTS}. Use TRL 1.16, or a plain "
            "DPOTrainer, which computes them again."
        )
    return trainer


def check_tokens(dataset: Any, max_length: int | None) -> None:
    """See that the trainer would sum over as many answer tokens as the reference did.

    Raises:
        DataError: it would not for some rows, so that the two log-probs could not be compared.
    """
    needed = [name for name, own in _TOKENS.items() if {name, own, "prompt_ids"} <= {*dataset.column_names}]
    if not needed:
        return
    columns = ["prompt_ids", *needed, *(_TOKENS[name] for name in needed)]
    num_differing = 0
    for batch in dataset.select_columns(columns).iter(batch_size=1000):
        for row, prompt in enumerate(batch["prompt_ids"]):
            room = None if max_length is None else max(0, max_length - len(prompt))
            pairs = [(batch[_TOKENS[name]][row], len(batch[name][row][:room])) for name in needed]
            num_differing += any(scored is not None and scored != trained for scored, trained in pairs)
    if num_differing:
        raise DataError(
            f"the reference log-probs of {num_differing:,} of {len(dataset):,} rows are sums over other tokens than "
            f"the trainer's (max_length {max_length}). Train with the tokenizer, chat template and max_length that the "
            "pairs were scored with (tokens.preset trl), or without the columns ref_*_logps."
        )
