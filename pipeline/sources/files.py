"""Pre-flight over a source: which data files it has, in a fixed order, and every bad one at once.

A source is one file, a folder (searched to the bottom), or a folder made by `datasets`' save_to_disk. Names that
start with a dot or an underscore, and files of no known extension, are no part of it; the latter are named, unless
they describe the data. Files are ordered by their path relative to the root, so that the same source gives the same
plan.
"""

import bisect
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.faults import is_missing
from pipeline.shown import listed, shown, shown_path
from pipeline.sources.bounds import BadFile
from pipeline.sources.columns import plain_type
from pipeline.sources.hf_folder import dataset_files
from pipeline.sources.probe import FileKind, Probe, probe_file
from pipeline.sources.unchanged import digest_of, state_of

_EXTENSIONS: Final = {
    ".parquet": FileKind.PARQUET,
    ".pq": FileKind.PARQUET,
    ".arrow": FileKind.ARROW_FILE,
    ".feather": FileKind.ARROW_FILE,
    ".ipc": FileKind.ARROW_FILE,
    ".arrows": FileKind.ARROW_FILE,
    **{
        f"{base}{packed}": kind
        for base in (".jsonl", ".ndjson", ".json")
        for packed, kind in {
            "": FileKind.JSONL,
            ".gz": FileKind.JSONL_GZIP,
            ".zst": FileKind.JSONL_ZSTD,
            ".zstd": FileKind.JSONL_ZSTD,
        }.items()
    },
}
# Files that tools write beside the data; none of them holds rows.
_NOT_DATA: Final = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "run.json", "report.json"}
)
_DESCRIPTIONS: Final = (".md", ".md5", ".sha256")
_DESCRIBING: Final = ("readme", "license", "licence")
_PROBES_AT_ONCE: Final = 8
_PROBLEMS_SHOWN: Final = 50
_IGNORED_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One data file. `size` in bytes.

    `digest` names the content: an ETag on S3, blake2b of it on a local disk. In `state`, see `unchanged`, storage held
    just that content.
    """

    path: str
    """Relative to the root of the scan, with forward slashes."""
    kind: FileKind
    num_rows: int
    size: int
    digest: str
    state: str = field(default="", repr=False)
    marks: tuple[tuple[int, int], ...] = field(default=((0, 0),), repr=False)
    """Places where a reader can start, see `probe.Probe`."""

    def mark_before(self, row: int) -> tuple[int, int]:
        """The last place to start reading from that is not after `row`."""
        return self.marks[max(bisect.bisect_right(self.marks, row, key=lambda mark: mark[0]) - 1, 0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceScan:
    """The data files under `root`, a path in the file system, with the schema they share (None for JSON Lines)."""

    root: str
    files: tuple[SourceFile, ...]
    schema: pa.Schema | None
    ignored: tuple[str, ...] = ()
    """Files that may hold data but are of no known extension, in order."""

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(file.num_rows for file in self.files)


def scan_files(fs: Any, root: str) -> SourceScan:
    """Find and check every data file under `root`.

    Raises:
        SourceError: no such path, no rows, or bad files; all of them are listed, each with its reason.
        OSError: the storage failed.
    """
    base, sizes, ignored = _data_files(fs, fs._strip_protocol(root).rstrip("/"), shown_path(root))  # noqa: SLF001 - fsspec's own idiom
    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        states = dict(zip(sizes, pool.map(lambda path: _state(fs, base, path, sizes[path]), sizes), strict=True))
        looks = list(pool.map(lambda path: _look(fs, base, path, sizes[path]), sorted(sizes)))
    problems = {path: look for path, look in zip(sorted(sizes), looks, strict=True) if isinstance(look, str)}
    good = {path: look for path, look in zip(sorted(sizes), looks, strict=True) if not isinstance(look, str)}
    schema, drifted = _common_schema(good)
    problems |= drifted
    if problems:
        raise SourceError(_problem_text(root, problems, len(sizes)))
    if not any(probe.num_rows for probe in good.values()):
        where = shown_path(root)
        raise SourceError(f"source {where} has 0 rows in {len(good)} file(s). Give a path that holds preference data.")
    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        digests = list(pool.map(lambda path: digest_of(fs, posixpath.join(base, path)), good))
        moved = [path for path in good if _state(fs, base, path, sizes[path]) != states[path]]
    if moved:
        raise SourceError(_problem_text(root, dict.fromkeys(moved, "changes while it is looked at"), len(sizes)))
    files = tuple(
        SourceFile(
            path=path,
            kind=p.kind,
            num_rows=p.num_rows,
            size=sizes[path],
            digest=digest,
            state=states[path],
            marks=p.marks,
        )
        for (path, p), digest in zip(good.items(), digests, strict=True)
    )
    return SourceScan(root=base, files=files, schema=schema, ignored=ignored)


def ignored_text(names: Sequence[str]) -> str:
    """How many files were ignored, and the first of them."""
    more = ", ..." if len(names) > _IGNORED_SHOWN else ""
    files = "1 file" if len(names) == 1 else f"{len(names):,} files"
    return f"{files} of no known extension: {listed(names[:_IGNORED_SHOWN])}{more}"


def _data_files(fs: Any, base: str, shown: str) -> tuple[str, dict[str, int], tuple[str, ...]]:
    """The folder that paths are relative to, the data files' sizes in bytes by relative path, and ignored files."""
    try:
        info = fs.info(base)
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        raise SourceError(f"source {shown} does not exist. Give source.path an existing file or folder.") from None
    if info["type"] != "directory":
        name = posixpath.basename(base)
        if _kind_of_name(name) is None:
            raise SourceError(f"source {shown} is no data file; wanted one of {', '.join(_EXTENSIONS)}.")
        return posixpath.dirname(base), {name: int(info["size"])}, ()
    found = {
        posixpath.relpath(path, base): int(details.get("size") or 0)
        for path, details in fs.find(base, detail=True).items()
    }
    found = {path: size for path, size in found.items() if not _is_hidden(path)}
    saved = dataset_files(fs, base, found, shown)
    wanted = saved if saved is not None else [p for p in found if _kind_of_name(posixpath.basename(p)) is not None]
    if not wanted:
        others = f" It has {listed(sorted(found)[:5])}." if found else ""
        raise SourceError(f"source {shown} holds no data file; wanted one of {', '.join(_EXTENSIONS)}.{others}")
    ignored = tuple(sorted(path for path in found if path not in wanted and _may_hold_data(posixpath.basename(path))))
    return base, {path: found.get(path, -1) for path in wanted}, ignored


def _state(fs: Any, base: str, path: str, size: int) -> str:
    """State of a file; of one that a folder lists and does not hold there is none."""
    return "" if size < 0 else state_of(fs, posixpath.join(base, path))


def _look(fs: Any, base: str, path: str, size: int) -> Probe | str:
    kind = _kind_of_name(posixpath.basename(path))
    if size < 0:
        return "is missing, though the dataset folder lists it"
    if size == 0:
        return "is empty (0 bytes)"
    if any("\ud800" <= letter <= "\udfff" for letter in path):
        return "has a name that is not UTF-8"
    if kind is None:
        return f"is of no known extension ({', '.join(_EXTENSIONS)})"
    try:
        return probe_file(fs, posixpath.join(base, path), kind)
    except BadFile as bad:
        return str(bad)


def _common_schema(probes: dict[str, Probe]) -> tuple[pa.Schema | None, dict[str, str]]:
    """The schema of the first file, null columns filled in from later ones, and how other files differ from it."""
    if not probes:
        return None, {}
    first = next(iter(probes))
    first_schema = probes[first].schema
    types: dict[str, pa.DataType] = {} if first_schema is None else {f.name: f.type for f in first_schema}
    drifted = {}
    for path, probe in probes.items():
        if probe.kind.is_json != probes[first].kind.is_json:
            drifted[path] = (
                f"is {probe.kind}, while {shown_path(first)} is {probes[first].kind}; "
                "keep kinds in folders of their own"
            )
        elif probe.schema is not None:
            differences = _differences(types, probe.schema)
            if differences:
                drifted[path] = f"has another schema than {shown_path(first)}: {'; '.join(differences)}"
    return (None if first_schema is None else pa.schema(list(types.items()))), drifted


def _differences(types: dict[str, pa.DataType], schema: pa.Schema) -> list[str]:
    missing = [name for name in types if name not in schema.names]
    extra = [name for name in schema.names if name not in types]
    differences = [f"lacks {listed(missing)}"] if missing else []
    differences += [f"adds {listed(extra)}"] if extra else []
    for column in schema:
        if column.name in extra or pa.types.is_null(column.type):
            continue
        if pa.types.is_null(types[column.name]):
            types[column.name] = column.type
        elif plain_type(types[column.name]) != plain_type(column.type):
            differences.append(f"{shown(column.name)} is {shown(column.type)}, not {shown(types[column.name])}")
    return differences


def _problem_text(root: str, problems: dict[str, str], num_files: int) -> str:
    first = [f"  {shown_path(path)} {problem}" for path, problem in sorted(problems.items())[:_PROBLEMS_SHOWN]]
    more = [f"  and {len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
    head = f"source {shown_path(root)}: {len(problems)} of {num_files} data file(s) cannot be used:"
    return "\n".join([head, *first, *more, "Repair these files or move them away."])


def _kind_of_name(name: str) -> FileKind | None:
    lowered = name.lower()
    if lowered in _NOT_DATA:
        return None
    return next((kind for extension, kind in _EXTENSIONS.items() if lowered.endswith(extension)), None)


def _may_hold_data(name: str) -> bool:
    """Whether a file is of no known extension and does not describe the data either."""
    lowered = name.lower()
    described = lowered in _NOT_DATA or lowered.startswith(_DESCRIBING) or lowered.endswith(_DESCRIPTIONS)
    return _kind_of_name(name) is None and not described


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))
