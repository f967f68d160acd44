"""The plan of a run: every row of the source in exactly one shard, in order, none across files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, IntegrityError
from pipeline.sources.files import SourceFile
from pipeline.sources.probe import FileKind


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


def plan_shards(files: Sequence[SourceFile], shard_rows: int) -> list[Shard]:
    """Cut the files, in their order, into shards of `shard_rows` rows; the last one of a file may be shorter.

    Raises:
        ConfigError: `shard_rows` is below 1.
    """
    if shard_rows < 1:
        raise ConfigError(f"run.shard_rows must be at least 1, got {shard_rows}.")
    ranges = [(file, first) for file in files for first in range(0, file.num_rows, shard_rows)]
    return [
        shard_of(file, first, min(shard_rows, file.num_rows - first), index)
        for index, (file, first) in enumerate(ranges)
    ]


def stored_shards(plan: Sequence[Mapping[str, Any]], files: Sequence[SourceFile], where: str) -> list[Shard]:
    """The shards of a stored plan, which must hold every row of the files once; `where` is the plan's own file.

    Raises:
        IntegrityError: they do not.
    """
    by_path, num_seen = {file.path: file for file in files}, dict.fromkeys((file.path for file in files), 0)
    shards = []
    for index, stored in enumerate(plan):
        file, num_rows = by_path.get(stored.get("file", "")), stored.get("num_rows")
        if file is None or not isinstance(num_rows, int) or num_rows < 1:
            break
        shard = shard_of(file, num_seen[file.path], num_rows, index)
        if shard.to_dict() != stored:
            break
        num_seen[file.path] += num_rows
        shards.append(shard)
    if len(shards) != len(plan) or any(num_seen[file.path] != file.num_rows for file in files):
        raise IntegrityError(
            f"{where} is damaged: its shards do not hold every row of the source once. Use another path."
        )
    return shards


def shard_of(file: SourceFile, first_row: int, num_rows: int, index: int = 0) -> Shard:
    """These rows of a file."""
    return Shard(
        index=index,
        file=file.path,
        kind=file.kind,
        first_row=first_row,
        num_rows=num_rows,
        mark=file.mark_before(first_row),
        digest=file.digest,
        state=file.state,
    )
