"""A first pass over a subset: what its rows have, and which of them a format cannot hold."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from pipeline import schema
from pipeline.data.dataset import Dataset
from pipeline.errors import SchemaError
from pipeline.exports.layout import BLOCK_PAIRS, ExportFormat, Facts, Row
from pipeline.shown import listed
from pipeline.sources.columns import plain_type

_IDS_KEPT: Final = 100
_IDS_SHOWN: Final = 5
_NEEDED: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
_WHOLE: Final = {
    "has_reference": (schema.REFERENCE_LOGP_CHOSEN, schema.REFERENCE_LOGP_REJECTED),
    "has_rewards": (schema.REWARD_CHOSEN, schema.REWARD_REJECTED),
    "has_margin": (schema.MARGIN_EXPLICIT,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the first pass found.

    gaps: columns that lack a value in some pair that fits. ids: of unfit pairs by reason, the first of each; row
    numbers where there is no id.
    """

    schema: pa.Schema
    facts: Facts
    num_pairs: int
    gaps: frozenset[str] = frozenset()
    num_unfit: Counter[str] = field(default_factory=Counter)
    ids: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_fit(self) -> int:
        """Pairs that the format can hold."""
        return self.num_pairs - self.num_unfit.total()


def survey(subset: Dataset, form: ExportFormat) -> Survey:
    """Look at every pair.

    Raises:
        SchemaError: the subset lacks prompt, chosen or rejected as message lists.
    """
    table_schema = pa.schema([pa.field(each.name, plain_type(each.type)) for each in subset.schema])
    _check(table_schema)
    absent: Counter[str] = Counter()
    unfit: Counter[str] = Counter()
    ids: dict[str, list[str]] = {}
    num_pairs = num_tools = 0
    for table in subset.tables():
        for row in table.to_pylist():
            reason = form.unfit(row)
            if reason is not None:
                unfit[reason] += 1
                if len(ids.setdefault(reason, [])) < _IDS_KEPT:
                    ids[reason].append(str(row.get(schema.ID, f"row {num_pairs}")))
            else:
                num_tools += row.get(schema.TOOLS) is not None
                absent.update(name for name in table_schema.names if row[name] is None)
            num_pairs += 1
    whole = {
        fact: all(name in table_schema.names and not absent[name] for name in columns)
        for fact, columns in _WHOLE.items()
    }
    facts = Facts(has_tools=num_tools > 0, **whole)
    gaps = frozenset(absent)
    return Survey(schema=table_schema, facts=facts, num_pairs=num_pairs, gaps=gaps, num_unfit=unfit, ids=ids)


def fit_blocks(subset: Dataset, form: ExportFormat) -> Iterator[list[Row]]:
    """The pairs that fit, in order, in blocks that do not depend on how the files are cut."""
    block: list[Row] = []
    for table in subset.tables():
        for row in table.to_pylist():
            if form.unfit(row) is None:
                block.append(row)
            if len(block) == BLOCK_PAIRS:
                yield block
                block = []
    if block:
        yield block


def describe_unfit(num_unfit: Mapping[str, int], ids: Mapping[str, Sequence[str]]) -> str:
    """One line for each reason."""
    lines = []
    for reason, count in sorted(num_unfit.items()):
        first = listed(ids[reason][:_IDS_SHOWN]) + (", ..." if count > _IDS_SHOWN else "")
        lines.append(f"  {reason}: {count:,} ({first})")
    return "\n".join(lines)


def _check(found: pa.Schema) -> None:
    schema.require_columns(found, _NEEDED, where="export", remedy="Select again.")
    wrong: dict[str, Any] = {name: found.field(name).type for name in _NEEDED}
    wrong = {name: kind for name, kind in wrong.items() if not kind.equals(schema.MESSAGES)}
    if wrong:
        raise SchemaError(f"export needs message lists; the subset has {wrong}. Select again.")
