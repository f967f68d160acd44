"""The plan of a run: the source's data files, and their rows cut into shards.

Every row is in exactly one shard, in order. No shard spans two files.
"""

import bisect
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from pipeline.errors import ConfigError, IntegrityError
from pipeline.sources.probe import FileKind
from pipeline.sources.splits import NO_SPLITS, Part

NULL_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """`num_rows` rows of `file` from `first_row` on, 0-based."""

    index: int
    """Place in the plan, 0-based and dense."""
    file: str
    """Path relative to the source's root."""
    kind: FileKind
    first_row: int
    num_rows: int
    mark: tuple[int, int]
    """Where a reader can start: the row, not after `first_row`, and its position in the file."""
    digest: str
    """Of the file's content; a reader refuses any other."""
    state: str
    """Of the file when its content was looked at, see `unchanged`."""

    def to_dict(self) -> dict[str, Any]:
        """What a stored plan needs to know; the rest is known of the file."""
        return {
            "index": self.index,
            "file": self.file,
            "kind": str(self.kind),
            "first_row": self.first_row,
            "num_rows": self.num_rows,
        }


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
    message_fields: frozenset[str] = field(default=frozenset(), repr=False)
    """See `probe.Probe`."""
    is_one_shard: bool = False
    """Its rows are read together, see `Format.whole_files`."""

    def shard(self, first_row: int, num_rows: int, index: int = 0) -> Shard:
        """These rows of the file. Reading starts at the last mark that is not after `first_row`."""
        place = bisect.bisect_right(self.marks, first_row, key=lambda mark: mark[0]) - 1
        return Shard(
            index=index,
            file=self.path,
            kind=self.kind,
            first_row=first_row,
            num_rows=num_rows,
            mark=self.marks[max(place, 0)],
            digest=self.digest,
            state=self.state,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceScan:
    """The data files under `root`, a path in the file system. Text files have no schema (None)."""

    root: str
    files: tuple[SourceFile, ...]
    schema: pa.Schema | None
    """Every column that a file has. What has no common type in all files has that of the first."""
    variants: tuple[tuple[str, pa.Schema], ...] = ()
    """The schemas that differ, each with the first file that has it."""
    ignored: tuple[str, ...] = ()
    """Files that may hold data but are of no known extension, in order."""
    part: Part = NO_SPLITS
    """The split and config that the files are of, and what else the source has."""

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(file.num_rows for file in self.files)

    @property
    def partitions(self) -> list[str]:
        """Columns that folders are named after."""
        return list(dict.fromkeys(name for file in self.files for name in partitions(file.path)))


def partitions(path: str) -> dict[str, str | None]:
    """The columns that the folders of a file are named after, as in `lang=de/part-0.parquet`, with their text."""
    parts = (folder.partition("=") for folder in path.split("/")[:-1] if "=" in folder)
    values = {urllib.parse.unquote(name): urllib.parse.unquote(value) for name, _, value in parts if name}
    return {name: None if value == NULL_PARTITION else value for name, value in values.items()}


def plan_shards(files: Sequence[SourceFile], shard_rows: int) -> list[Shard]:
    """As a list what `each_shard` gives."""
    return [*each_shard(files, shard_rows)]


def each_shard(files: Sequence[SourceFile], shard_rows: int) -> Iterator[Shard]:
    """Cut the files, in their order, into shards of `shard_rows` rows; the last one of a file may be shorter.

    A file that must be one shard is one, however many rows it has.

    Raises:
        ConfigError: `shard_rows` is below 1.
    """
    if shard_rows < 1:
        raise ConfigError(f"run.shard_rows must be at least 1, got {shard_rows}.")
    sizes = [(file, file.num_rows if file.is_one_shard else shard_rows) for file in files if file.num_rows]
    ranges = ((file, first, size) for file, size in sizes for first in range(0, file.num_rows, size))
    for index, (file, first, size) in enumerate(ranges):
        yield file.shard(first, min(size, file.num_rows - first), index)


def check_shards(plan: Sequence[Mapping[str, Any]], files: Sequence[SourceFile], where: str) -> None:
    """See that a stored plan holds every row of the files once; `where` is the plan's own file.

    Raises:
        IntegrityError: it does not.
    """
    by_path, num_seen = {file.path: file for file in files}, dict.fromkeys((file.path for file in files), 0)
    num_right = 0
    for index, stored in enumerate(plan):
        file, num_rows = by_path.get(stored.get("file", "")), stored.get("num_rows")
        if file is None or not isinstance(num_rows, int) or num_rows < 1:
            break
        if file.shard(num_seen[file.path], num_rows, index).to_dict() != stored:
            break
        num_seen[file.path] += num_rows
        num_right += 1
    if num_right != len(plan) or any(num_seen[file.path] != file.num_rows for file in files):
        raise IntegrityError(
            f"{where} is damaged: its shards do not hold every row of the source once. Use another path."
        )
