"""Several sources as one: shards of each in turn, and a column that tells which source a row is from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.errors import SchemaError
from pipeline.shown import shown
from pipeline.sources.reader import PairReader
from pipeline.sources.shards import Shard, SourceFile


@dataclass(frozen=True, kw_only=True)
class MixReader:
    """Reads shards of several sources, by name. The file of a shard is `NAME/path in that source`."""

    readers: Mapping[str, PairReader]
    schema: pa.Schema

    @classmethod
    def of(cls, readers: Mapping[str, PairReader]) -> "MixReader":
        """Of sources with these readers.

        Raises:
            SchemaError: they pass columns of one name and of different types through.
        """
        fields: set[str] = set()
        passed: dict[str, tuple[str, pa.Field]] = {}
        for name, reader in readers.items():
            fields.update(s.message_fields_of(reader.schema.field(s.PROMPT).type) or ())
            for field in reader.passthrough:
                other, before = passed.setdefault(field.name, (name, field.remove_metadata()))
                if before.type != field.type:
                    raise SchemaError(
                        f"sources {shown(other)} and {shown(name)} pass {shown(field.name)} through as {before.type} "
                        f"and as {field.type}. Give it one type, or another name by `columns` of one of them."
                    )
        has_kwargs = any(s.TEMPLATE_KWARGS in reader.schema.names for reader in readers.values())
        pair = s.pair_schema(fields, template_kwargs=has_kwargs)
        extra = [pa.field(s.SOURCE_NAME, pa.string()), *(field for _, field in passed.values())]
        [rewards] = {reader.rewards for reader in readers.values()}
        return cls(readers=readers, schema=s.scored_schema(extra, pair, rewards))

    def read(self, shard: Shard) -> pa.Table:
        """As `PairReader.read`. An id from an id column becomes NAME:ID: it need be unique in its source alone."""
        name, _, path = shard.file.partition("/")
        reader = self.readers[name]
        table = reader.read(replace(shard, file=path))
        columns = {field.name: table.column(field.name) for field in table.schema}
        columns[s.SOURCE_NAME] = pa.repeat(name, table.num_rows)
        if reader.id_column is not None:
            columns[s.ID] = pc.binary_join_element_wise(name, columns[s.ID], ":")
        arrays = [
            columns[field.name].cast(field.type) if field.name in columns else pa.nulls(table.num_rows, field.type)
            for field in self.schema
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema.with_metadata(table.schema.metadata))


def mixed_files(name: str, files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files of a source as those of a mix."""
    return [replace(file, path=f"{name}/{file.path}") for file in files]


def mixed_sizes(num_rows: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """How many rows of each source make the largest mix in the proportion of the weights, rounded down, at least 1."""
    shares = {name: Fraction(str(weight)) for name, weight in weights.items()}
    whole = min(num_rows[name] / share for name, share in shares.items())
    return {name: max(1, int(whole * share)) for name, share in shares.items()}
