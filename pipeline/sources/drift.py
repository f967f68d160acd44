"""Files of one source that differ: what does no harm is read, what changes the meaning of rows is refused.

Other number types, the order of columns and of fields, columns that nobody reads, and optional columns that some files
lack do no harm. A column that is text in one file and messages in another is refused, and so is a file that lacks a
column that its rows need.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from pipeline.drops import Drop
from pipeline.errors import SourceError
from pipeline.shown import listed, shown, shown_path
from pipeline.sources.columns import Columns, Kind, common_type
from pipeline.sources.formats import Sample, raw_rows
from pipeline.sources.naming import mapped_kinds
from pipeline.sources.rows import Format
from pipeline.sources.shards import SourceScan

_LOOKS_AT_ONCE: Final = 8
_PROBLEMS_SHOWN: Final = 20


def check_files_agree(
    fs: Any,
    sample: Sample,
    known: Format,
    *,
    scores: Sequence[str],
    id_column: str | None = None,
    passthrough: Sequence[str] = (),
) -> None:
    """Raise a SourceError if files differ in what decides about pairs: the format, scores and id, or passed columns.

    `scores` are columns without which a row has no usable scores.
    """
    kinds = dict(_kinds_of_files(fs, sample))
    needed = [*scores, *([id_column] if id_column else [])]
    problems = [*_unlike(kinds, {*known.reads, *scores}), *_lacking(kinds, sample.columns, known, needed)]
    found = list(
        dict.fromkeys([*problems, *(problem for name in passthrough for problem in _unlike_types(sample.scan, name))])
    )
    if found:
        shown_ones = "\n".join(f"  {problem}" for problem in found[:_PROBLEMS_SHOWN])
        raise SourceError(
            f"source {shown_path(sample.scan.root)}: its files differ in what their rows mean:\n{shown_ones}\n"
            "Give source.path files of one kind, each kind in a folder of its own."
        )


def _kinds_of_files(fs: Any, sample: Sample) -> Iterator[tuple[str, Columns]]:
    """Kinds of the mapped columns by file: of each file of text, of the first with each schema."""
    scan = sample.scan
    for path, schema in scan.variants:
        yield path, mapped_kinds(sample.map, schema, sample.decoded)
    if scan.schema is not None or len(scan.files) == 1:
        return

    def look(path: str) -> Columns:
        one = replace(scan, files=tuple(file for file in scan.files if file.path == path))
        rows = [sample.map.of_row(row) for row in raw_rows(fs, one, ()) if not isinstance(row, Drop)]
        return mapped_kinds(sample.map, None, rows)

    paths = [file.path for file in scan.files if file.num_rows]
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        yield from zip(paths, pool.map(look, paths), strict=True)


def _unlike(kinds: Mapping[str, Columns], names: Iterable[str]) -> Iterator[str]:
    for name in sorted(names):
        seen = {path: found[name] for path, found in kinds.items() if found.get(name, Kind.NULL) is not Kind.NULL}
        first = next(iter(seen), "")
        for path, kind in seen.items():
            if kind is not seen[first]:
                yield f"{shown_path(path)}: {shown(name)} is {kind}; in {shown_path(first)} it is {seen[first]}"


def _lacking(kinds: Mapping[str, Columns], columns: Columns, known: Format, needed: Sequence[str]) -> Iterator[str]:
    for path, found in kinds.items():
        if not found:
            continue  # no row of it can be decoded
        full = {name: columns.get(name, kind) if kind is Kind.NULL else kind for name, kind in found.items()}
        missing = [*known.lacks(full), *(name for name in needed if name not in full)]
        other = next((path for path, has in kinds.items() if not known.lacks(has) and {*needed} <= {*has}), "")
        if missing:
            yield f"{shown_path(path)} lacks {listed(missing)}" + (f"; {shown_path(other)} has it" if other else "")


def _unlike_types(scan: SourceScan, name: str) -> Iterator[str]:
    """What is wrong with a column that is to be passed through, if its types have no common one."""
    types = {path: schema.field(name).type for path, schema in scan.variants if name in schema.names}
    first = next(iter(types), "")
    for path, kind in types.items():
        if common_type([types[first], kind]) is None:
            yield (
                f"{shown_path(path)}: {shown(name)}, which is passed through, is {shown(str(kind))}; "
                f"in {shown_path(first)} it is {shown(str(types[first]))}"
            )
