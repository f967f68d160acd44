"""The first reading of a subset: what its pairs have, and which of them a format cannot hold."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from pipeline import schema
from pipeline.data.dataset import Dataset
from pipeline.errors import SchemaError
from pipeline.exports.layout import ExportFormat, Facts, Row
from pipeline.sources.columns import plain_type

_BLOCK_PAIRS: Final = 1000
_IDS_KEPT: Final = 100
_COMPLETE: Final = {
    "has_reference": (schema.REFERENCE_LOGP_CHOSEN, schema.REFERENCE_LOGP_REJECTED),
    "has_rewards": (schema.REWARD_CHOSEN, schema.REWARD_REJECTED),
    "has_margin": (schema.MARGIN_EXPLICIT,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the first reading found.

    gaps: columns without a value in some pair that fits. num_unfit, unfit_ids: unfit pairs by reason; the ids are the
    first of each reason, or row numbers if the rows have no id.
    """

    schema: pa.Schema
    facts: Facts
    num_pairs: int
    gaps: frozenset[str]
    num_unfit: Mapping[str, int]
    unfit_ids: Mapping[str, list[str]]

    @property
    def num_fit(self) -> int:
        """Pairs that the format can hold."""
        return self.num_pairs - sum(self.num_unfit.values())


def survey(subset: Dataset, form: ExportFormat) -> Survey:
    """Look at every pair.

    Raises:
        SchemaError: the subset lacks prompt, chosen or rejected as message lists.
    """
    found = pa.schema([pa.field(each.name, plain_type(each.type)) for each in subset.schema])
    needed = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
    schema.require_columns(found, needed, where="export", remedy="Select again.")
    wrong = {name: found.field(name).type for name in needed if not found.field(name).type.equals(schema.MESSAGES)}
    if wrong:
        raise SchemaError(f"export needs message lists; the subset has {wrong}. Select again.")
    absent: Counter[str] = Counter()
    num_unfit: Counter[str] = Counter()
    unfit_ids: dict[str, list[str]] = {}
    num_pairs = num_tools = 0
    for table in subset.tables():
        for row in table.to_pylist():
            reason = form.unfit(row)
            if reason is not None:
                num_unfit[reason] += 1
                if len(unfit_ids.setdefault(reason, [])) < _IDS_KEPT:
                    unfit_ids[reason].append(str(row.get(schema.ID, f"row {num_pairs}")))
            else:
                num_tools += row.get(schema.TOOLS) is not None
                absent.update(name for name in found.names if row[name] is None)
            num_pairs += 1
    complete = {
        fact: all(name in found.names and not absent[name] for name in columns) for fact, columns in _COMPLETE.items()
    }
    return Survey(
        schema=found,
        facts=Facts(has_tools=num_tools > 0, **complete),
        num_pairs=num_pairs,
        gaps=frozenset(absent),
        num_unfit=num_unfit,
        unfit_ids=unfit_ids,
    )


def fit_blocks(subset: Dataset, form: ExportFormat) -> Iterator[list[Row]]:
    """The pairs that fit, in order, in blocks that do not depend on how the files are cut."""
    block: list[Row] = []
    for table in subset.tables():
        for row in table.to_pylist():
            if form.unfit(row) is None:
                block.append(row)
            if len(block) == _BLOCK_PAIRS:
                yield block
                block = []
    if block:
        yield block
