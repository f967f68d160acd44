"""`alignpot export`: a complete subset, written for a trainer.

    survey -> claim -> files -> _SUCCESS.json

The subset is read twice, some rows at a time: once to see what every row has, once to write. Run again, the same
command finds its export and does nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline import schema
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.files import file_shards, finish_files, rows_by_split, write_files
from pipeline.data.manifest import EXPORT, SUBSET, Manifest
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run, check_claim
from pipeline.data.sealed import fingerprint_digest
from pipeline.errors import ConfigError, DataError, SchemaError
from pipeline.exports.formats import FORMATS
from pipeline.exports.layout import ANSWER, WANTED, Column, ExportFormat, Facts, Row, whole
from pipeline.shown import listed, shown
from pipeline.sources.columns import plain_type

_BLOCK_PAIRS: Final = 1000
_IDS_KEPT: Final = 100
_IDS_SHOWN: Final = 5
_USED: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED, schema.TOOLS, schema.TEMPLATE_KWARGS)
_INSIDE_LISTS: Final = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_JSON_TYPES: Final = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_string, pa.types.is_large_string),
)


def export_subset(
    subset: Place,
    to: str,
    output: Place,
    *,
    slim: bool = False,
    drop_unfit: bool = False,
    rows_per_file: int = 100_000,
) -> str:
    """Write the export, unless it is there already; returns the text to print.

    slim: only what the trainer reads. drop_unfit: leave out pairs that the format cannot hold, instead of refusing.

    Raises:
        ConfigError: an unknown format.
        DataError: pairs do not fit, and are not to be left out.
    """
    form = FORMATS.get(to)
    if form is None:
        raise ConfigError(f"--to {shown(to)} is no format; wanted one of {', '.join(FORMATS)}.")
    dataset = Dataset.open(subset, SUBSET)
    # The rows of the subset decide the bytes, not the files or the place they lie in.
    source = dataset.manifest.fingerprint
    decisive = {name: value for name, value in source.items() if name not in ("formats", "layout")}
    fingerprint = {
        "subset": fingerprint_digest(decisive),
        "subset_rows": dataset.manifest.num_rows,
        "export": to,
        "slim": slim,
        "drop_unfit": drop_unfit,
    }
    done = Dataset.find(output, EXPORT)
    if done is not None:
        check_claim(output, EXPORT, fingerprint)
        _check_fit(done.manifest.extra, to, drop_unfit=drop_unfit)
        return _told(done.manifest, output, form)
    check_writable(output)
    columns = _message_columns(dataset)
    facts, gaps, about, num_fit = _survey(dataset, columns, form)
    _check_fit(about, to, drop_unfit=drop_unfit)
    empty = [split for split, count in num_fit.items() if not count]
    if empty:
        of_split = f" in split {empty[0]}" if len(num_fit) > 1 else ""
        raise DataError(f"{subset} has no pair to export{of_split}: {about['num_pairs']:,} pairs, none fits {to}.")
    own = form.columns(facts)
    extra, about["columns_left_out"] = ([], []) if slim else _extra_columns(columns, own, gaps, form)
    plan = Plan(
        kind=EXPORT,
        fingerprint=fingerprint,
        config={},
        schema=pa.schema([*(pa.field(column.name, column.type) for column in own), *extra]),
        shards=file_shards(
            {split: count * form.rows_per_pair for split, count in num_fit.items()},
            max(num_fit.values()) * form.rows_per_pair if len(num_fit) > 1 and form.one_file else rows_per_file,
        ),
        formats=(form.container,),
    )
    run = Run.claim(output, plan)
    files = write_files(run, _tables(dataset, form, own, plan.schema))
    manifest = finish_files(run, files, form.descriptions(facts), about)
    return _told(manifest, output, form)


def unpaired(pairs: Sequence[Row]) -> Iterator[Row]:
    """Each answer of each pair as a row; chosen and rejected answers alternate.

    The rejected answers are moved on by half a block, so that the two answers of a pair are far apart.
    """
    half = len(pairs) // 2
    for index, pair in enumerate(pairs):
        other = pairs[(index + half) % len(pairs)]
        yield {**pair, ANSWER: pair[schema.CHOSEN], WANTED: True}
        yield {**other, ANSWER: other[schema.REJECTED], WANTED: False}


def _survey(
    subset: Dataset, columns: pa.Schema, form: ExportFormat
) -> tuple[Facts, set[str], dict[str, Any], dict[str, int]]:
    """Look at every pair.

    Returns:
        What is true of the pairs that fit; the columns without a value in some of them; and for the manifest the number
        of pairs, that of unfit ones by reason, and their first ids (row numbers if the rows have no id); and how many
        fit, by split.
    """
    absent: Counter[str] = Counter()
    num_unfit: Counter[str] = Counter()
    unfit_ids: dict[str, list[str]] = {}
    num_fit = dict.fromkeys(subset.splits, 0)
    num_pairs = num_tools = num_kwargs = 0
    for split, table in _split_tables(subset):
        for row in map(whole, table.to_pylist()):
            reason = form.unfit(row)
            if reason is not None:
                num_unfit[reason] += 1
                if len(unfit_ids.setdefault(reason, [])) < _IDS_KEPT:
                    unfit_ids[reason].append(str(row.get(schema.ID, f"row {num_pairs}")))
            else:
                num_fit[split] += 1
                num_tools += row.get(schema.TOOLS) is not None
                num_kwargs += row.get(schema.TEMPLATE_KWARGS) is not None
                absent.update(name for name in columns.names if row[name] is None)
            num_pairs += 1
    complete = {*columns.names} - {*absent}
    facts = Facts(
        has_fields=bool(schema.message_fields_of(columns.field(schema.PROMPT).type)),
        has_kwargs=num_kwargs > 0,
        has_tools=num_tools > 0,
        has_reference={schema.REFERENCE_LOGP_CHOSEN, schema.REFERENCE_LOGP_REJECTED} <= complete,
        has_rewards={schema.REWARD_CHOSEN, schema.REWARD_REJECTED} <= complete,
        has_margin=schema.MARGIN_EXPLICIT in complete,
        held_out=tuple(split for split in subset.splits if split != schema.TRAIN),
    )
    about = {
        "num_pairs": num_pairs,
        "num_unfit": dict(sorted(num_unfit.items())),
        "unfit_ids": dict(sorted(unfit_ids.items())),
    }
    return facts, {*absent}, about, num_fit


def _split_tables(subset: Dataset) -> Iterator[tuple[str, pa.Table]]:
    """The rows of one split after another."""
    return ((split, table) for split in subset.splits for table in subset.of_split(split).tables())


def _fit_blocks(subset: Dataset, form: ExportFormat) -> Iterator[list[Row]]:
    """The pairs that fit, in order, in blocks of one split that do not depend on how the files are cut."""
    for split in subset.splits:
        block: list[Row] = []
        for table in subset.of_split(split).tables():
            for row in map(whole, table.to_pylist()):
                if form.unfit(row) is None:
                    block.append(row)
                if len(block) == _BLOCK_PAIRS:
                    yield block
                    block = []
        if block:
            yield block


def _tables(subset: Dataset, form: ExportFormat, own: Sequence[Column], columns: pa.Schema) -> Iterator[pa.Table]:
    extra = columns.names[len(own) :]
    plain = pa.schema([field.with_type(plain_type(field.type)) for field in columns])  # Arrow makes no JSON of texts
    for block in _fit_blocks(subset, form):
        rows = unpaired(block) if form.unpaired else block
        values = [
            {column.name: column.value(row) for column in own} | {name: row[name] for name in extra} for row in rows
        ]
        yield pa.Table.from_pylist(values, schema=plain).cast(columns)


def _message_columns(subset: Dataset) -> pa.Schema:
    """The columns of a subset, with plain types.

    Raises:
        SchemaError: it lacks prompt, chosen or rejected as message lists.
    """
    found = pa.schema([pa.field(each.name, plain_type(each.type)) for each in subset.schema])
    needed = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
    schema.require_columns(found, needed, where="export", remedy="Select again.")
    types = {name: found.field(name).type for name in needed}
    wrong = {name: kind for name, kind in types.items() if schema.message_fields_of(kind) is None}
    if wrong:
        raise SchemaError(f"export needs message lists; the subset has {wrong}. Select again.")
    return found


def _extra_columns(
    columns: pa.Schema, own: Sequence[Column], gaps: set[str], form: ExportFormat
) -> tuple[list[pa.Field], list[str]]:
    """Other columns of the subset that are kept, and the names of those that cannot be."""
    unwanted = {column.name for column in own} | form.misread
    kept, left_out = [], []
    for column in columns:
        if column.name in _USED:
            continue
        # Readers of JSON Lines infer types from the first lines: they could not load a column whose values begin later.
        holds = form.container != "jsonl" or (_is_json(column.type) and column.name not in gaps)
        if holds and column.name not in unwanted:
            kept.append(column)
        else:
            left_out.append(column.name)
    return kept, left_out


def _is_json(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return all(_is_json(kind.field(i).type) for i in range(kind.num_fields))
    if any(check(kind) for check in _INSIDE_LISTS):
        return _is_json(kind.value_type)
    return any(check(kind) for check in _JSON_TYPES)


def _check_fit(about: Mapping[str, Any], to: str, *, drop_unfit: bool) -> None:
    num_unfit = sum(about["num_unfit"].values())
    if num_unfit and not drop_unfit:
        raise DataError(
            f"{num_unfit:,} of {about['num_pairs']:,} pairs do not fit {to}:\n{_unfit_lines(about)}\n"
            "Leave them out with --drop-unfit, or export to another format."
        )


def _unfit_lines(about: Mapping[str, Any]) -> str:
    lines = []
    for reason, count in about["num_unfit"].items():
        more = ", ..." if count > _IDS_SHOWN else ""
        lines.append(f"  {reason}: {count:,} ({listed(about['unfit_ids'][reason][:_IDS_SHOWN])}{more})")
    return "\n".join(lines)


def _told(manifest: Manifest, output: Place, form: ExportFormat) -> str:
    about = manifest.extra
    num_unfit = sum(about["num_unfit"].values())
    lines = [
        f"export: {manifest.num_rows:,} rows from {about['num_pairs'] - num_unfit:,} pairs, for {form.reads}",
        f"  {output}",
        f"  {form.usage.format(path=output)}",
    ]
    for split, num_rows in rows_by_split(manifest.files).items():
        if split != schema.TRAIN:
            lines.append(f"held out as {split}: {num_rows:,} rows\n  {form.held_out.format(path=output, split=split)}")
    if num_unfit:
        lines.append(f"left out, {num_unfit:,} pairs:\n{_unfit_lines(about)}")
    if about["columns_left_out"]:
        why = "" if form.container == "hf" else ", or without a value in every pair"
        lines.append(f"columns that {form.name} has no place for{why}: {listed(about['columns_left_out'], 100)}")
    return "\n".join(lines)
