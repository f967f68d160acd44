"""Pre-flight over a source: which data files it has, in a fixed order, and every bad one at once.

A source is one file, a folder (searched to the bottom), or a folder made by `datasets`' save_to_disk. If it has splits,
`splits` picks one. Names that start with a dot or an underscore are ignored, but not folders such as `_day=3`. So are
files of no known extension; they are reported, unless they describe the data. Files are ordered by their path relative
to the root, so that the same source gives the same plan.
"""

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.faults import is_missing
from pipeline.shown import listed, shown_path
from pipeline.sources.bounds import BadFile
from pipeline.sources.columns import common_type
from pipeline.sources.probe import FileKind, Probe, probe_file
from pipeline.sources.records import CSV, JSONL, TSV
from pipeline.sources.saved import DICT_FILE, INFO_FILE, STATE_FILE, only_saved, saved_files
from pipeline.sources.shards import SourceFile, SourceScan, partitions
from pipeline.sources.splits import DEFAULT, Part, Wanted, part_of, part_of_file
from pipeline.sources.unchanged import digest_of, state_of

_PACKED: Final = {"": None, ".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_TEXTS: Final = {".jsonl": JSONL, ".ndjson": JSONL, ".json": JSONL, ".csv": CSV, ".tsv": TSV}
_EXTENSIONS: Final = {
    **dict.fromkeys((".parquet", ".pq"), FileKind.PARQUET),
    **dict.fromkeys((".arrow", ".feather", ".ipc", ".arrows"), FileKind.ARROW_FILE),
    ".lance": FileKind.LANCE,
    **{
        f"{base}{packed}": FileKind.of_text(form, codec)
        for base, form in _TEXTS.items()
        for packed, codec in _PACKED.items()
    },
}
_SHOWN: Final = (name for name, kind in _EXTENSIONS.items() if name.count(".") == 1 and kind is not FileKind.LANCE)
_WANTED: Final = f"{', '.join(_SHOWN)} (text also .gz or .zst)"
_TABLES: Final = {
    "delta://PATH": re.compile(r"(?:^|/)_delta_log/"),
    "iceberg://CATALOG/NAMESPACE.TABLE": re.compile(r"(?:^|/)metadata/[^/]+\.metadata\.json$"),
    "lance://PATH": re.compile(r"(?:^|/)_versions/[^/]+\.manifest$"),
}
"""Files by which a folder is known to be of a table, with the URL that such a table is read by."""
# Files that tools write beside the data; none of them holds rows.
_NOT_DATA: Final = frozenset({INFO_FILE, "dataset_infos.json", DICT_FILE, STATE_FILE, "run.json", "report.json"})
_DESCRIPTIONS: Final = (".md", ".md5", ".sha256", ".crc")
_DESCRIBING: Final = ("readme", "license", "licence")
_MISSING: Final = -1  # the size of a file that is not there
_PROBES_AT_ONCE: Final = 8
_PROBLEMS_SHOWN: Final = 50
_IGNORED_SHOWN: Final = 5


def scan_files(fs: Any, root: str, wanted: Wanted = DEFAULT) -> SourceScan:
    """Find and check every data file of the wanted part of `root`.

    Raises:
        SourceError: no such path or part, no rows, or bad files; all of them are listed, each with its reason.
        OSError: the storage failed.
    """
    base, sizes, ignored, part = _data_files(fs, fs._strip_protocol(root).rstrip("/"), shown_path(root), wanted)  # noqa: SLF001 - fsspec's own idiom
    paths = sorted(sizes)

    def state(path: str) -> str:
        """State of a file; a file that a saved dataset lists and does not hold has none."""
        return "" if sizes[path] < 0 else state_of(fs, posixpath.join(base, path))

    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        states = dict(zip(paths, pool.map(state, paths), strict=True))
        looks = dict(zip(paths, pool.map(lambda path: _look(fs, base, path, sizes[path]), paths), strict=True))
    problems = {path: look for path, look in looks.items() if isinstance(look, str)}
    good = {path: look for path, look in looks.items() if not isinstance(look, str)}
    problems |= _unlike_kinds(good)
    if problems:
        raise SourceError(_problem_text(root, problems, len(sizes)))
    if not any(probe.num_rows for probe in good.values()):
        where = shown_path(root)
        raise SourceError(f"source {where} has 0 rows in {len(good)} file(s). Give a path that holds preference data.")
    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        digests = dict(zip(paths, pool.map(lambda path: digest_of(fs, posixpath.join(base, path)), paths), strict=True))
    moved = [path for path in paths if state(path) != states[path]]
    if moved:
        raise SourceError(_problem_text(root, dict.fromkeys(moved, "changes while it is looked at"), len(sizes)))
    files = tuple(
        SourceFile(
            path=path,
            kind=probe.kind,
            num_rows=probe.num_rows,
            size=sizes[path],
            digest=digests[path],
            state=states[path],
            marks=probe.marks,
            message_fields=probe.message_fields,
        )
        for path, probe in good.items()
    )
    variants = _variants(good)
    schema = _common_schema(variants)
    return SourceScan(root=base, files=files, schema=schema, variants=variants, ignored=ignored, part=part)


def ignored_text(names: Sequence[str]) -> str:
    """How many files were ignored, and the first of them."""
    more = ", ..." if len(names) > _IGNORED_SHOWN else ""
    files = "1 file" if len(names) == 1 else f"{len(names):,} files"
    return f"{files} of no known extension: {listed(names[:_IGNORED_SHOWN])}{more}"


def _data_files(fs: Any, base: str, shown: str, wanted: Wanted) -> tuple[str, dict[str, int], tuple[str, ...], Part]:
    """The folder that paths are relative to, the bytes of each data file to read, ignored files, and what is read."""
    try:
        info = fs.info(base)
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        raise SourceError(f"source {shown} does not exist. Give source.path an existing file or folder.") from None
    if info["type"] != "directory":
        name = posixpath.basename(base)
        if _kind_of(name) is None:
            raise SourceError(f"source {shown} is no data file; wanted one of {_WANTED}.")
        part = part_of_file(name, wanted, f"source {shown}")
        return posixpath.dirname(base), {name: int(info["size"])}, (), part
    every = {posixpath.relpath(path, base): found for path, found in _found(fs, base).items()}
    _refuse_table(every, shown)
    found = {
        path: int(details.get("size") or 0)
        for path, details in every.items()
        if not any(part.startswith((".", "_")) and "=" not in part for part in path.split("/"))
    }
    data = sorted(path for path in found if _kind_of(path) is not None)
    inner = only_saved({*found}, data)
    if inner is not None:
        return _data_files(fs, posixpath.join(base, inner), f"{shown}/{shown_path(inner)}", wanted)
    part = part_of(fs, base, sorted(found), data, wanted)
    files: list[str] = []
    for path in part.files:
        files += saved_files(fs, base, path) if posixpath.basename(path) == STATE_FILE else [path]
    if not files:
        others = f" It has {listed(sorted(found)[:5])}." if found else ""
        raise SourceError(f"source {shown} holds no data file; wanted one of {_WANTED}.{others}")
    ignored = tuple(sorted(path for path in found if path not in files and _may_hold_data(path)))
    return base, {path: found.get(path, _MISSING) for path in files}, ignored, part


def _refuse_table(names: Iterable[str], shown: str) -> None:
    """Raise a SourceError if the folder is of a table, whose files may hold rows that the table does not."""
    url = next((url for url, mark in _TABLES.items() if any(map(mark.search, names))), None)
    if url is not None:
        raise SourceError(
            f"source {shown} holds a table, and its files may have rows that are no longer in it. Give source.path as "
            f"{url}."
        )


def _found(fs: Any, folder: str, above: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Every file under a folder, also under linked folders, unless a link leads back to a folder `above`."""
    above |= {os.path.realpath(folder)}
    found: dict[str, Any] = fs.find(folder, detail=True)
    for path in [path for path, details in found.items() if details.get("islink")]:
        real = os.path.realpath(path)
        if not fs.exists(path):
            found[path]["size"] = _MISSING
        elif fs.isdir(path):
            del found[path]
            found |= {} if any(f"{folder}/".startswith(f"{real}/") for folder in above) else _found(fs, path, above)
    return found


def _look(fs: Any, base: str, path: str, size: int) -> Probe | str:
    """What a file holds, or why it cannot be used."""
    kind = _kind_of(path)
    if size < 0:
        return "is missing, though the folder lists it"
    if size == 0:
        return "is empty (0 bytes)"
    if any("\ud800" <= letter <= "\udfff" for letter in path):
        return "has a name that is not UTF-8"
    if kind is None:
        return f"is of no known extension ({_WANTED})"
    try:
        return probe_file(fs, posixpath.join(base, path), kind)
    except BadFile as bad:
        return str(bad)


def _unlike_kinds(probes: Mapping[str, Probe]) -> dict[str, str]:
    """Files of text beside files with a schema, with what is wrong with them."""
    first = next(iter(probes.items()), None)
    if first is None:
        return {}
    return {
        path: f"is {probe.kind}, while {shown_path(first[0])} is {first[1].kind}; keep kinds in folders of their own"
        for path, probe in probes.items()
        if probe.kind.is_json != first[1].kind.is_json
    }


def _variants(probes: Mapping[str, Probe]) -> tuple[tuple[str, pa.Schema], ...]:
    """The schemas that differ, each with the first file that has it; folders named after a column add that column."""
    found: dict[pa.Schema, str] = {}
    for path, probe in probes.items():
        if probe.schema is not None:
            added = [pa.field(name, pa.string()) for name in partitions(path) if name not in probe.schema.names]
            found.setdefault(pa.schema([*probe.schema, *added]), path)
    return tuple((path, schema) for schema, path in found.items())


def _common_schema(variants: Sequence[tuple[str, pa.Schema]]) -> pa.Schema | None:
    types: dict[str, list[pa.DataType]] = {}
    for _, schema in variants:
        for column in schema:
            types.setdefault(column.name, []).append(column.type)
    merged = {name: common_type(found) or found[0] for name, found in types.items()}
    return pa.schema([*merged.items()]) if variants else None


def _problem_text(root: str, problems: dict[str, str], num_files: int) -> str:
    first = [f"  {shown_path(path)} {problem}" for path, problem in sorted(problems.items())[:_PROBLEMS_SHOWN]]
    more = [f"  and {len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
    head = f"source {shown_path(root)}: {len(problems)} of {num_files} data file(s) cannot be used:"
    return "\n".join([head, *first, *more, "Repair these files or move them away."])


def _kind_of(path: str) -> FileKind | None:
    name = posixpath.basename(path).lower()
    if name in _NOT_DATA:
        return None
    return next((kind for extension, kind in _EXTENSIONS.items() if name.endswith(extension)), None)


def _may_hold_data(path: str) -> bool:
    """Whether a file is of no known extension and does not describe the data either."""
    name = posixpath.basename(path).lower()
    described = name in _NOT_DATA or name.startswith(_DESCRIBING) or name.endswith(_DESCRIPTIONS)
    return _kind_of(path) is None and not described
