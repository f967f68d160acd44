"""`alignpot export`: a complete subset, written for a trainer.

    survey -> claim -> files -> _SUCCESS.json

The subset is read twice, some rows at a time: once to see what every row has, once to write. Run again, the same
command finds its export and does nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline.config import Storage
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.files import file_shards, finish_files, write_files
from pipeline.data.manifest import EXPORT, SUBSET, Manifest
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run, check_claim
from pipeline.data.sealed import fingerprint_digest
from pipeline.errors import ConfigError, DataError
from pipeline.exports.formats import FORMATS
from pipeline.exports.layout import PAIR, ExportFormat, Facts, Row
from pipeline.exports.survey import Survey, describe_unfit, fit_blocks, survey
from pipeline.shown import listed, shown, shown_path

ROWS_PER_FILE: Final = 100_000
_INSIDE_LISTS: Final = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_JSON_TYPES: Final = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_string, pa.types.is_large_string),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What the command was asked for.

    slim: only what the trainer reads. drop_unfit: leave out pairs that the format cannot hold, instead of refusing.
    """

    subset: str
    to: str
    output: str
    storage: Storage
    slim: bool = False
    drop_unfit: bool = False
    rows_per_file: int = ROWS_PER_FILE


def export_subset(request: ExportRequest) -> Iterator[str]:
    """Write the export; the texts to print.

    Raises:
        ConfigError: an unknown format.
        DataError: pairs do not fit, and are not to be left out.
        AlignpotError: the subset cannot be read, or the output not written.
    """
    form = FORMATS.get(request.to)
    if form is None:
        raise ConfigError(f"--to {shown(request.to)} is no format; wanted one of {', '.join(FORMATS)}.")
    subset = Dataset.open(Place.open(request.subset, request.storage), SUBSET)
    manifest = _export(subset, Place.open(request.output, request.storage), request, form)
    yield _told(manifest, request, form)


def _export(subset: Dataset, output: Place, request: ExportRequest, form: ExportFormat) -> Manifest:
    fingerprint = _fingerprint(subset.manifest, request)
    done = Dataset.find(output, EXPORT)
    if done is not None:
        check_claim(output, EXPORT, fingerprint)
        about = done.manifest.extra
        _check_fit(about["num_unfit"], about["unfit_ids"], about["num_pairs"], request)
        return done.manifest
    check_writable(output)
    found = survey(subset, form)
    _check_fit(dict(found.num_unfit), found.ids, found.num_pairs, request)
    if not found.num_fit:
        where = shown_path(request.subset)
        raise DataError(f"{where} has no pair to export: {found.num_pairs:,} pairs, none fits {request.to}.")
    kept, left_out = _extra_columns(found, form, slim=request.slim)
    plan = Plan(
        kind=EXPORT,
        fingerprint=fingerprint,
        config={},
        schema=pa.schema([*form.columns(found.facts), *kept]),
        shards=file_shards(found.num_fit * form.rows_per_pair, request.rows_per_file),
        formats=(form.container,),
    )
    run = Run.claim(output, plan)
    files = write_files(run, _tables(subset, form, found.facts, plan.schema))
    about = {
        "num_pairs": found.num_pairs,
        "num_unfit": dict(sorted(found.num_unfit.items())),
        "unfit_ids": dict(sorted(found.ids.items())),
        "columns_left_out": left_out,
    }
    return finish_files(run, files, form.descriptions(found.facts), about)


def _fingerprint(subset: Manifest, request: ExportRequest) -> dict[str, Any]:
    """What decides the bytes: the subset (its rows, not the files or the place they lie in), the format and `slim`."""
    decisive = {name: value for name, value in subset.fingerprint.items() if name not in ("formats", "layout")}
    return {
        "subset": fingerprint_digest(decisive),
        "subset_rows": subset.num_rows,
        "export": request.to,
        "slim": request.slim,
        "drop_unfit": request.drop_unfit,
    }


def _check_fit(
    num_unfit: dict[str, int], ids: Mapping[str, Sequence[str]], num_pairs: int, request: ExportRequest
) -> None:
    if num_unfit and not request.drop_unfit:
        raise DataError(
            f"{sum(num_unfit.values()):,} of {num_pairs:,} pairs do not fit {request.to}:\n"
            f"{describe_unfit(num_unfit, ids)}\nLeave them out with --drop-unfit, or export to another format."
        )


def _extra_columns(found: Survey, form: ExportFormat, *, slim: bool) -> tuple[list[pa.Field], list[str]]:
    """Columns of the subset that go along, and the names of those that cannot."""
    if slim:
        return [], []
    used = {"prompt", "chosen", "rejected", "tools"}
    own = {field.name for field in form.columns(found.facts)}
    kept, left_out = [], []
    for column in found.schema:
        if column.name in used:
            continue
        # Readers of JSON Lines infer types from the first lines: a column whose values begin later could not be loaded.
        holds = form.container != "jsonl" or (_is_json(column.type) and column.name not in found.gaps)
        if column.name in own | form.misread or not holds:
            left_out.append(column.name)
        else:
            kept.append(column)
    return kept, left_out


def _is_json(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return all(_is_json(kind.field(i).type) for i in range(kind.num_fields))
    if any(check(kind) for check in _INSIDE_LISTS):
        return _is_json(kind.value_type)
    return any(check(kind) for check in _JSON_TYPES)


def _tables(subset: Dataset, form: ExportFormat, facts: Facts, schema: pa.Schema) -> Iterator[pa.Table]:
    own = {field.name for field in form.columns(facts)}
    extra = [name for name in schema.names if name not in own]
    for block in fit_blocks(subset, form):
        values = [_with_extra(row, block, extra) for row in form.convert(block, facts)]
        yield pa.Table.from_pylist(values, schema=schema)


def _with_extra(row: dict[str, Any], block: Sequence[Row], extra: Sequence[str]) -> dict[str, Any]:
    pair = block[row.pop(PAIR)]
    return {**row, **{name: pair[name] for name in extra}}


def _told(manifest: Manifest, request: ExportRequest, form: ExportFormat) -> str:
    path, about = shown_path(request.output.rstrip("/")), manifest.extra
    num_unfit = sum(about["num_unfit"].values())
    lines = [
        f"export: {manifest.num_rows:,} rows from {about['num_pairs'] - num_unfit:,} pairs, for {form.reads}",
        f"  {path}",
        f"  {form.usage.format(path=path)}",
    ]
    if num_unfit:
        lines.append(f"left out, {num_unfit:,} pairs:\n{describe_unfit(about['num_unfit'], about['unfit_ids'])}")
    if about["columns_left_out"]:
        why = "" if form.container == "hf" else ", or without a value in every pair"
        lines.append(f"columns that {request.to} has no place for{why}: {listed(about['columns_left_out'], 100)}")
    return "\n".join(lines)
