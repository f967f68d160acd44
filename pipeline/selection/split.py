"""Which of the chosen rows are held out: select.split. All rows of a prompt are on one side.

The side follows from the digest of the prompt and select.seed alone, so it is the same in every selection.
"""

from collections.abc import Mapping

import numpy as np

from pipeline.config import Select
from pipeline.errors import DataError
from pipeline.metrics.ids import uniform_of_hashes
from pipeline.schema import TRAIN
from pipeline.selection.per_prompt import KeyArray
from pipeline.selection.source import Positions


def split_rows(prompts: KeyArray, rule: Select) -> Mapping[str, Positions]:
    """Ascending places of the rows of each split, by name in order; none unless select.split is set.

    prompts: `prompt_keys` of the rows.

    Raises:
        DataError: a split would have no row.
    """
    if rule.split is None:
        return {}
    names = [*sorted(rule.split), TRAIN]
    ends = np.cumsum([rule.split[name] for name in names[:-1]])
    side = np.searchsorted(ends, uniform_of_hashes(prompts[:, 0], rule.seed), side="right")
    found = {name: np.flatnonzero(side == i) for i, name in enumerate(names)}
    empty = [name for name, rows in found.items() if not rows.size]
    if empty:
        raise DataError(
            f"select.split {rule.split} leaves no row for {', '.join(empty)}; got {len(prompts):,} chosen rows, which "
            "their prompts share out. Choose more rows, change the shares, or leave select.split out."
        )
    return dict(sorted(found.items()))
