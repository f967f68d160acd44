"""Checks before a run whether models in fp8 rank the first rows as they do in their own dtype.

The margins that selection reads are ranked. With a reference, the implicit margin is the difference of two models that
are often close to each other, so the check needs both models.
"""

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.config import Config, names_of, reward_key
from pipeline.errors import ModelError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.margins import explicit_margin, implicit_margin
from pipeline.metrics.ranks import spearman
from pipeline.steps.score_stages import score_stages
from pipeline.steps.work import ShardWork, Stage, in_turn

NUM_RANKED: Final = 64
LOWEST_CORRELATION: Final = 0.99
_FEWEST_RANKED: Final = 16
_CAUSAL: Final = frozenset({"policy", "reference"})  # the models behind the implicit margin

logger = logging.getLogger(__name__)


def check_ranks(config: Config, table: pa.Table) -> None:
    """Score some rows with and without fp8, one model at a time, and compare how their margins rank.

    Args:
        config: with some models in fp8.
        table: the first rows of the source, as pairs.

    Raises a ModelError if a margin's rank correlation is below 0.99.
    """
    models = config.torch_models()
    roles = [role for role, model in models.items() if model.fp8]
    plain_models = {role: model.model_copy(update={"fp8": False}) for role, model in models.items()}
    keys = {name: reward_key(name) for name in config.members}
    sections = {name: plain_models[key] for name, key in keys.items() if key in plain_models}
    causal = {role: plain_models[role] for role in _CAUSAL & {*plain_models}}
    without = config.model_copy(update=causal).with_members(sections)
    wanted = {"tokenise", *roles} | (_CAUSAL if _CAUSAL & {*roles} else frozenset())
    common = _scored(table, [stage for stage in score_stages(without) if stage.label in wanted - {*roles}])
    own, rounded = (
        _scored(common, [stage for stage in score_stages(each) if stage.label in roles]) for each in (without, config)
    )
    for name, before in _margins(config, roles, own).items():
        _compare(name, before, _margins(config, roles, rounded)[name], roles)


def _scored(table: pa.Table, stages: Sequence[Stage]) -> pa.Table:
    [work] = in_turn([ShardWork(shard=0, table=table)], stages)
    return work.table


def _margins(config: Config, roles: Sequence[str], table: pa.Table) -> dict[str, FloatArray]:
    """The margins that depend on models in fp8, by their names in messages."""
    found = {
        " ".join(filter(None, ("explicit", name))): explicit_margin(table, reward=name)
        for member, section in config.members.items()
        if reward_key(member) in roles
        for name in names_of(member, section)
    }
    has_reference = config.reference is not None or not config.objective.reads_reference
    if config.policy is not None and has_reference and _CAUSAL & {*roles}:
        found[f"implicit ({config.objective.name})"] = implicit_margin(table, config.objective)
    return found


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
