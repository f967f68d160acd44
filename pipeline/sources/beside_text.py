"""What the messages and rows of a source hold beside role and content, as far as chat templates read it.

A dataset has a place for those fields only that its source has. For Parquet and Arrow the schema tells. Of JSON the
first rows tell, and for tool calls and `reasoning_content` every row: their names are looked for when a file is first
read. A row with another field, in later rows only, is dropped as `late_field`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.types as pat

from pipeline.drops import Drop, DropRow, Reason
from pipeline.schema import MESSAGE_FIELDS, PROMPT, TEMPLATE_KWARGS, message_fields_of, pair_schema
from pipeline.sources.columns import Row
from pipeline.sources.rows import PLAIN_KEYS, Format, PairRow

_ROLE_NAMES: Final = frozenset({"role", "from"})


def sampled_pairs(known: Format, sample: Iterable[Row]) -> Iterator[PairRow]:
    """The pairs of sampled rows; rows that have none are left out."""
    for row in known.together(dict(enumerate(sample))).values():
        with contextlib.suppress(Exception):  # whatever the reader drops such a row for
            if not isinstance(row, Drop):
                yield known.convert(row)


def source_schema(
    schema: pa.Schema | None, columns: Sequence[str], pairs: Sequence[PairRow], named: frozenset[str] = frozenset()
) -> pa.Schema:
    """The schema of the pairs of a source: with the fields that its own schema or the sampled pairs have.

    columns: those that are read. named: further fields that rows of JSON seem to have.
    """
    found = {*named, *(field for pair in pairs for field in _fields(pair))}
    if schema is not None:
        found |= {name for column in columns for name in _names_of_messages(schema.field(column).type)}
    has_kwargs = any(pair.template_kwargs is not None for pair in pairs)
    return pair_schema(found, template_kwargs=has_kwargs or (schema is not None and TEMPLATE_KWARGS in columns))


def check_fields(pair: PairRow, schema: pa.Schema) -> None:
    """Raise DropRow if the schema has no place for a field of the pair."""
    fields = {*_fields(pair)}
    if not fields and pair.template_kwargs is None:
        return
    late = pair.template_kwargs is not None and TEMPLATE_KWARGS not in schema.names
    if late or not fields <= {*(message_fields_of(schema.field(PROMPT).type) or ())}:
        raise DropRow(Reason.LATE_FIELD)


def _fields(pair: PairRow) -> Iterator[str]:
    """The fields that turns of the pair have."""
    for turn in (*pair.prompt, *pair.chosen, *pair.rejected):
        if not turn.keys() <= PLAIN_KEYS:
            yield from turn.keys() - PLAIN_KEYS


def _names_of_messages(kind: pa.DataType) -> Iterator[str]:
    """The fields of messages at any depth of a type."""
    children = [kind.field(index) for index in range(kind.num_fields)]
    if any(child.name in _ROLE_NAMES for child in children):
        yield from (child.name for child in children if child.name in MESSAGE_FIELDS and not pat.is_null(child.type))
    for child in children:
        yield from _names_of_messages(child.type)
