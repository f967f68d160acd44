"""The plan of a run: every row of the source in exactly one shard, in order, none across files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
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
    mark: tuple[int, int] = (0, 0)
    """Where a reader can start: the row, not after `first_row`, and its position in the file."""

    def to_dict(self) -> dict[str, Any]:
        """The shard as JSON-ready values."""
        return {
            "index": self.index,
            "file": self.file,
            "kind": str(self.kind),
            "first_row": self.first_row,
            "num_rows": self.num_rows,
            "mark": list(self.mark),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Shard":
        """The shard that `to_dict` wrote."""
        row, position = data["mark"]
        return cls(
            index=int(data["index"]),
            file=str(data["file"]),
            kind=FileKind(data["kind"]),
            first_row=int(data["first_row"]),
            num_rows=int(data["num_rows"]),
            mark=(int(row), int(position)),
        )


def plan_shards(files: Sequence[SourceFile], shard_rows: int) -> list[Shard]:
    """Cut the files, in their order, into shards of `shard_rows` rows; the last one of a file may be shorter.

    Raises:
        ConfigError: `shard_rows` is below 1.
    """
    if shard_rows < 1:
        raise ConfigError(f"run.shard_rows must be at least 1, got {shard_rows}.")
    ranges = [(file, first) for file in files for first in range(0, file.num_rows, shard_rows)]
    return [
        Shard(
            index=index,
            file=file.path,
            kind=file.kind,
            first_row=first,
            num_rows=min(shard_rows, file.num_rows - first),
            mark=file.mark_before(first),
        )
        for index, (file, first) in enumerate(ranges)
    ]
