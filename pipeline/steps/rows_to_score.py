"""The rows that `score` scores: of one source or several, or of a dataset of ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import ColumnsModel, ColumnsReward, Config, NamedSource, Source, Storage
from pipeline.data.benchmarks import read_benchmarks
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest
from pipeline.data.place import Place
from pipeline.data.run import Run
from pipeline.errors import ConfigError
from pipeline.faults import storage_errors
from pipeline.metrics.columns import single_array
from pipeline.metrics.ids import id_hashes
from pipeline.rewards.registry import reward_backends
from pipeline.selection.duplicates import find_repeats
from pipeline.sources.left_out import Sample
from pipeline.sources.mix import MixReader, mixed_files, mixed_sizes
from pipeline.sources.open import open_source
from pipeline.sources.reader import PairReader
from pipeline.sources.rows import content_digest
from pipeline.sources.shards import SourceFile
from pipeline.steps.shards import OwnRows, SourceRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """One source. fingerprint: of its rows, without its files. found: what the reader found, as keys of its section."""

    reader: PairReader
    files: Sequence[SourceFile]
    fingerprint: Mapping[str, Any]
    found: Mapping[str, Any]

    @property
    def num_rows(self) -> int:
        """Rows that its limit leaves."""
        sample = self.reader.sample
        return sum(file.num_rows for file in self.files) if sample is None else sample.num_taken


def rows_of_sources(config: Config) -> dict[str, Any]:
    """Fields of the step that follow from the config's source or sources.

    `given` beside them: these sections of the resolved config, with what was found in each source.

    Raises an AlignpotError if something is wrong with a source.
    """
    held = {name: isinstance(config.members.get(name), ColumnsReward) for name in config.reward_names}
    opened = partial(
        open_checked,
        storage=config.storage,
        opener=partial(
            open_source,
            rewards=held.get("", False) if held.keys() <= {""} else held,
            policy_logps=isinstance(config.policy, ColumnsModel),
            reference_logps=isinstance(config.reference, ColumnsModel),
        ),
    )
    reader: PairReader | MixReader
    if config.source is not None:
        every = [opened(config.source)]
        reader, files = every[0].reader, every[0].files
        given: dict[str, Any] = {"source": config.source.model_dump(mode="json") | {**every[0].found}}
        fingerprint, formats = dict(every[0].fingerprint), reader.format
    elif config.sources:
        every = [opened(source) for source in config.sources]
        reader = MixReader.of(_weighted(config.sources, every))
        named = list(zip(config.sources, every, strict=True))
        files = [file for source, found in named for file in mixed_files(source.name, found.files)]
        given = {"sources": [source.model_dump(mode="json") | {**found.found} for source, found in named]}
        fingerprint = {"sources": {source.name: found.fingerprint for source, found in named}}
        formats = ", ".join(dict.fromkeys(found.reader.format for found in every))
    else:
        raise ConfigError("score needs a source section with the path of the preference data; the config has none.")
    has_ids = any(found.reader.id_column is not None for found in every)
    return {
        "given": given,
        "rows": SourceRows(reader=reader, files=files, shard_rows=_shard_rows(config)),
        "schema": reader.schema,
        "fingerprint": fingerprint | {"files": {file.path: file.digest for file in files}},
        "source_format": formats,
        "check": check_ids if has_ids else None,  # other ids are digests of the content
    }


def open_checked(
    source: Source, storage: Storage, opener: Callable[..., tuple[PairReader, list[SourceFile]]]
) -> Opened:
    """Open a source by `opener` (`open_source`, `open_responses`), with its benchmarks; raises as that."""
    place = Place.of_source(source.path, storage)
    benchmarks = read_benchmarks(source, storage)
    with storage_errors(source.path):
        reader, files = opener(place.fs, place.root, source)
    fingerprint = source.fingerprint() | {
        "format": reader.format,
        "passthrough": [field.name for field in reader.passthrough],
    }
    fields = [*(schema.message_fields_of(reader.schema.field(schema.PROMPT).type) or ())]
    fields += [name for name in (schema.TEMPLATE_KWARGS,) if name in reader.schema.names]
    if fields:
        fingerprint["message_fields"] = fields
    if benchmarks is not None:
        fingerprint["benchmarks"] = benchmarks.digest
    found = {"split": reader.split, "config": reader.config}
    if place.commit is not None:
        fingerprint["commit"] = place.commit
        found["path"] = str(place)
    return Opened(reader=replace(reader, benchmarks=benchmarks), files=files, fingerprint=fingerprint, found=found)


def _weighted(sources: Sequence[NamedSource], opened: Sequence[Opened]) -> dict[str, PairReader]:
    """The reader of each source, which takes as many rows as the weights ask for."""
    readers = {source.name: found.reader for source, found in zip(sources, opened, strict=True)}
    weights = {source.name: source.weight for source in sources if source.weight is not None}
    if not weights:
        return readers
    sizes = mixed_sizes({name: found.num_rows for name, found in zip(readers, opened, strict=True)}, weights)
    return {
        source.name: replace(found.reader, sample=Sample.of(found.files, sizes[source.name], source.seed))
        for source, found in zip(sources, opened, strict=True)
    }


def rows_of_dataset(config: Config, pairs: Dataset) -> dict[str, Any]:
    """Fields of the step that follow from pairs of ours.

    Their scores are kept where the config takes scores from columns. Columns that are not ours are kept too.
    """
    fields = schema.message_fields_of(pairs.schema.field(schema.PROMPT).type) or ()
    pair = schema.pair_schema(fields, template_kwargs=schema.TEMPLATE_KWARGS in pairs.schema.names)
    taken: set[str] = {*pair.names, schema.STATUS}
    for section, names in (
        *(
            (section, (*schema.reward_columns(name), *schema.lead_columns(name), schema.REWARDS_ALL))
            for name, section in config.members.items()
        ),
        (config.policy, schema.POLICY_SCORES),
        (config.reference, schema.REFERENCE_SCORES),
    ):
        if isinstance(section, (ColumnsModel, ColumnsReward)):
            taken.update(names)
    own = {field.name for field in (*schema.scored_schema(pair=pair), *schema.SUBSET_FIELDS)}
    own |= {column for name in config.reward_names for column in schema.reward_columns(name)}
    judged = schema.judged_rewards(pairs.schema.names)
    own |= {column for name in judged for column in schema.lead_columns(name)}
    extra = [field for field in pairs.schema if field.name not in own]
    wanted = schema.scored_schema(extra, pair, config.reward_names)
    wanted = schema.with_leads(wanted, [name for name in judged if {*schema.lead_columns(name)} <= taken])
    prepare = partial(_as_scored, wanted=wanted, blank=frozenset(own - taken))
    return {
        "rows": OwnRows(rows=pairs, shard_rows=_shard_rows(config), prepare=prepare),
        "schema": wanted,
        "fingerprint": {"dataset": pairs.content},
        "check": check_ids,
    }


def _as_scored(table: pa.Table, wanted: pa.Schema, blank: frozenset[str]) -> pa.Table:
    """Pairs of ours as rows of `wanted`: null in the columns `blank`, and in columns that they lack."""
    table = table.drop_columns([name for name in table.column_names if name in blank])
    if schema.CONTENT_DIGEST not in table.column_names:
        names = (schema.PROMPT, schema.CHOSEN, schema.REJECTED, schema.TOOLS, schema.TEMPLATE_KWARGS)
        held = [name for name in names if name in table.column_names]
        digests = [content_digest(*map(row.get, names)) for row in table.select(held).to_pylist()]
        table = table.append_column(schema.CONTENT_DIGEST, pa.array(digests, pa.string()))
    if schema.STATUS not in table.column_names:
        table = table.append_column(schema.STATUS, pa.array([schema.KEPT] * table.num_rows, pa.string()))
    has = set(table.column_names)
    columns = [table[field.name] if field.name in has else pa.nulls(table.num_rows, field.type) for field in wanted]
    return pa.Table.from_arrays(columns, schema=wanted)


def _shard_rows(config: Config) -> int:
    """Rows in a shard: few if models may fail in the middle of one, many if files are only read and written."""
    return config.run.shard_rows or (256 if config.torch_models() or reward_backends(config.members) else 8192)


def check_ids(run: Run, manifest: Manifest) -> None:
    """Refuse a dataset whose ids stand for several contents before it is published, however often it is asked for."""
    dataset = Dataset(run.place, manifest)
    hashes = [id_hashes(single_array(table, schema.ID)) for table in dataset.tables([schema.ID])]
    find_repeats(dataset, np.concatenate([np.zeros(0, dtype=np.uint64), *hashes]))
