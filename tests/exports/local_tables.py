"""Tables of each format on local disk, and calls that fail."""

import pkgutil
from pathlib import Path

import pyarrow as pa
import pytest

KINDS = ["iceberg", "delta", "lance"]


class Killed(BaseException):
    """Stands for the end of the process."""


class Tables:
    """Tables of each format below one folder: where they are, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, kind: str) -> str:
        return "iceberg://local/prefs.pairs" if kind == "iceberg" else f"{kind}://{self.folder / kind}"

    def catalog(self):
        from pyiceberg.catalog import load_catalog

        return load_catalog("local", uri=f"sqlite:///{self.folder}/catalog.db", warehouse=f"file://{self.folder}/wh")

    def open(self, kind: str):
        if kind == "iceberg":
            return self.catalog().load_table("prefs.pairs")
        if kind == "delta":
            from deltalake import DeltaTable

            return DeltaTable(self.folder / kind)
        import lance

        return lance.dataset(self.folder / kind)

    def rows(self, kind: str) -> list[dict]:
        """All rows by id; none if there is no table."""
        is_there = (
            self.catalog().table_exists("prefs.pairs")
            if kind == "iceberg"
            else any((self.folder / kind / log).exists() for log in ("_delta_log", "_versions"))
        )
        if not is_there:
            return []
        table = self.open(kind)
        if kind == "iceberg":
            found = table.scan().to_arrow()
        else:
            found = table.to_pyarrow_table() if kind == "delta" else table.to_table()
        return sorted(found.to_pylist(), key=lambda row: row["id"])

    def create(self, kind: str, schema: pa.Schema, *partitioned_by: str) -> None:
        """A table without rows whose partitions are the values of these columns."""
        if kind == "iceberg":
            table = self.catalog().create_table("prefs.pairs", schema)
            with table.update_spec() as spec:
                for name in partitioned_by:
                    spec.add_identity(name)
        else:
            from deltalake import DeltaTable, Schema

            DeltaTable.create(self.folder / kind, schema=Schema.from_arrow(schema), partition_by=[*partitioned_by])

    def files(self, kind: str, **partition: str) -> dict[str, bytes]:
        """The files of a table, or those of one partition, by name."""
        if kind == "iceberg":
            expression = " and ".join(f"{name} = '{text}'" for name, text in partition.items()) or None
            scan = self.open(kind).scan(**({} if expression is None else {"row_filter": expression}))
            paths = [task.file.file_path.removeprefix("file://") for task in scan.plan_files()]
        else:
            own = [(name, "=", text) for name, text in partition.items()]
            paths = self.open(kind).file_uris(file_pruning_predicate=own or None)
        return {path: Path(path).read_bytes() for path in paths}

    def append(self, kind: str, rows: pa.Table) -> None:
        """As somebody else does."""
        if kind == "iceberg":
            self.open(kind).append(rows)
        elif kind == "delta":
            from deltalake import write_deltalake

            write_deltalake(self.folder / kind, rows, mode="append")
        else:
            import lance

            lance.write_dataset(rows, self.folder / kind, mode="append")

    def num_commits(self, kind: str) -> int:
        table = self.open(kind)
        if kind == "iceberg":
            return len(table.snapshots())
        return table.version() + 1 if kind == "delta" else table.version


def fail_once(monkeypatch: pytest.MonkeyPatch, seam: str, when: str, error: BaseException) -> None:
    """The next call of the function fails, before or after it has done its work."""
    owner, _, name = seam.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    real = getattr(owner, name)

    def failing(*args, **kwargs):
        monkeypatch.setattr(owner, name, real)
        if when == "after":
            real(*args, **kwargs)
        raise error

    monkeypatch.setattr(owner, name, failing)
