"""A commit that keeps each shard's table as an Arrow file in a folder, for runs without the storage protocol."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True)
class Keep:
    """Writes a shard's table to the folder, from whatever process has it."""

    folder: Path

    def __call__(self, index: int, table: pa.Table) -> pa.Table:
        """Write the table of a shard; how many rows it has, as a table."""
        with (
            pa.OSFile(str(self.folder / f"{index:03}.arrow"), "wb") as file,
            pa.ipc.new_file(file, table.schema) as out,
        ):
            out.write_table(table)
        return pa.table({"rows": [table.num_rows]})

    def table_of(self, index: int) -> pa.Table:
        """The table of one shard."""
        return pa.ipc.open_file(str(self.folder / f"{index:03}.arrow")).read_all()

    def whole(self) -> pa.Table:
        """All shards, in their order."""
        indices = sorted(int(path.stem) for path in self.folder.glob("*.arrow"))
        return pa.concat_tables([self.table_of(index) for index in indices]).combine_chunks()
