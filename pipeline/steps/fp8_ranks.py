"""Whether models in fp8 order the first rows as in their own dtype: looked at once, before a run begins.

What is ranked are the margins that selection reads. Under an objective with a reference they are differences of two
models that are often close to each other, so that no look at one model alone could tell.
"""

import gc
import logging
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.config import Config
from pipeline.errors import ModelError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.margins import explicit_margin, implicit_margin
from pipeline.metrics.ranks import spearman
from pipeline.steps.plan import Stage, score_stages

NUM_RANKED: Final = 64
LOWEST_CORRELATION: Final = 0.99
_FEWEST_RANKED: Final = 16
_MARGINS: Final = ({"reward"}, {"policy", "reference"})  # the models that each margin is of

logger = logging.getLogger(__name__)


def roles_in_fp8(config: Config) -> list[str]:
    """Which models the config wants in fp8: of policy, reference and reward."""
    return [role for role, model in config.torch_models().items() if model.fp8]


def check_ranks(config: Config, table: pa.Table) -> None:
    """Score some rows with and without fp8, a model at a time, and compare the order of their margins.

    Args:
        config: with some models in fp8.
        table: the first rows of the source, as pairs.

    Raises:
        ModelError: a margin's rank correlation is below 0.99.
    """
    roles = roles_in_fp8(config)
    without = config.model_copy(
        update={role: model.model_copy(update={"fp8": False}) for role, model in config.torch_models().items()}
    )
    read = {"tokenise"}.union(*(beside for beside in _MARGINS if beside & {*roles}))
    common = _scored(table, [stage for stage in score_stages(without) if stage.name in read - {*roles}])
    own, rounded = (
        _scored(common, [stage for stage in score_stages(each) if stage.name in roles]) for each in (without, config)
    )
    for (name, before), (_, after) in zip(_margins(config, own), _margins(config, rounded), strict=True):
        _compare(name, before, after, roles)


def _scored(table: pa.Table, stages: Sequence[Stage]) -> pa.Table:
    for stage in stages:
        apply = stage.build()
        table = apply(table)
        getattr(apply, "close", lambda: None)()
        del apply
        _free_memory()
    return table


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _margins(config: Config, table: pa.Table) -> Iterator[tuple[str, FloatArray]]:
    """The margins that models in fp8 have a part in, by what messages call them."""
    roles = roles_in_fp8(config)
    if "reward" in roles:
        yield "explicit", explicit_margin(table)
    has_reference = config.reference is not None or not config.objective.reads_reference
    if config.policy is not None and has_reference and {"policy", "reference"} & {*roles}:
        yield f"implicit ({config.objective.name})", implicit_margin(table, config.objective)


def _compare(name: str, before: FloatArray, after: FloatArray, roles: Sequence[str]) -> None:
    finite = np.isfinite(before) & np.isfinite(after)
    before, after = before[finite], after[finite]
    if len(before) < _FEWEST_RANKED:
        logger.warning(
            "fp8: %d rows with %s margins are too few to tell whether they rank as without; wanted %d",
            len(before),
            name,
            _FEWEST_RANKED,
        )
        return
    found = 1.0 if np.array_equal(before, after) else spearman(before, after)
    logger.info("fp8: rank correlation of %s margins with those without fp8: %.4f", name, found)
    if not found >= LOWEST_CORRELATION:
        raise ModelError(
            f"In fp8 the {name} margins of the first {len(before)} rows have a rank correlation of {found:.4f} with "
            f"those without; wanted at least {LOWEST_CORRELATION}. Nothing was scored. Remove fp8 from "
            f"{' and '.join(roles)}."
        )
