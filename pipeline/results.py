"""What the calls of the API give back: pairs, scored rows and subsets, each as frames, datasets or Arrow tables."""

import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Config, Output, RewardConfig, Storage
from pipeline.config.load import parse
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import REWARDED
from pipeline.data.place import Place
from pipeline.errors import SchemaError
from pipeline.frames import Rows
from pipeline.observers.observed import observed
from pipeline.selection.report import render, summarise
from pipeline.selection.selection import Found
from pipeline.selection.source import Source as ScoredRows

if TYPE_CHECKING:
    import datasets


_INTERNAL: Final = {schema.CONTENT_DIGEST, *(field.name for field in (*schema.SCORE_FIELDS, *schema.OUTCOME_FIELDS))}


class Pairs(Rows):
    """Preference pairs: id, prompt, chosen, rejected as message lists. `dropped`: left-out rows by stage and reason."""

    def __init__(self, table: pa.Table) -> None:
        is_kept = pc.equal(table[schema.STATUS], schema.KEPT)
        left_out = table.filter(pc.invert(is_kept)).select([schema.DROP_STAGE, schema.DROP_REASON]).to_pylist()
        self.dropped = dict(Counter(": ".join(row.values()) for row in left_out))
        super().__init__(table.filter(is_kept).drop_columns([name for name in table.column_names if name in _INTERNAL]))


class _Kept(Rows):
    """The kept rows of a complete dataset.

    path: where it lies; temporary files go with this object. dropped: left-out rows by stage and reason.
    """

    def __init__(self, dataset: Dataset, path: str, files: ExitStack) -> None:
        self.dataset, self.path = dataset, path
        self.dropped = dataset.manifest.drops_by_reason
        weakref.finalize(self, files.close)

    def __len__(self) -> int:
        return self.dataset.num_kept

    def to_arrow(self) -> pa.Table:
        """All kept rows in memory, as an Arrow table."""
        return self.dataset.table()


class Scored(_Kept):
    """A scored dataset: pairs with their rewards, log-probs and token counts."""

    def __init__(self, config: Config, files: ExitStack) -> None:
        super().__init__(Dataset.open(Place.open(config.scored, config.storage)), config.scored, files)
        self.config = config


class Rewarded(_Kept):
    """Prompts with their responses and the rewards of these."""

    def __init__(self, config: RewardConfig, files: ExitStack) -> None:
        place = Place.open(config.rewarded, config.storage)
        super().__init__(Dataset.open(place, REWARDED), config.rewarded, files)


class Subset(Rows):
    """The rows that a selection keeps, with margin_explicit, margin_implicit and potential.

    Where select.split holds rows out, `to_datasets` gives every split, and tables have a column `split`.
    """

    def __init__(self, source: ScoredRows, found: Found, former: Mapping[str, Any] | None, owner: object) -> None:
        self._source, self._found, self._former = source, found, former
        self._owner = owner  # of the files that are read

    @cached_property
    def report(self) -> dict[str, Any]:
        """What was kept, in numbers: as `report.json` of a written subset."""
        return summarise(self._found, self._source)

    def __len__(self) -> int:
        return self._found.selection.k

    def __str__(self) -> str:
        return render(self.report)

    def to_arrow(self) -> pa.Table:
        """The kept rows as an Arrow table; with splits, one after another, and a column `split`."""
        splits = self._split_tables()
        if len(splits) == 1:
            return splits[schema.TRAIN]
        if schema.SPLIT in splits[schema.TRAIN].column_names:
            raise SchemaError("the rows have a column split of their own. Use to_datasets(), or write().")
        return pa.concat_tables(
            table.append_column(schema.SPLIT, pa.array([split] * table.num_rows)) for split, table in splits.items()
        )

    def to_datasets(self) -> "datasets.Dataset | datasets.DatasetDict":
        """As a Hugging Face dataset; as a DatasetDict where select.split is set."""
        import datasets

        splits = {
            name: datasets.Dataset(datasets.table.InMemoryTable(table)) for name, table in self._split_tables().items()
        }
        return datasets.DatasetDict(splits) if len(splits) > 1 else splits[schema.TRAIN]

    def _split_tables(self) -> dict[str, pa.Table]:
        from pipeline.steps.select import kept_columns

        selection, columns = self._found.selection, kept_columns(self._source, slim=False)
        return {
            name: pa.concat_tables(selection.rows(self._source, columns, selection.splits.get(name, slice(None))))
            for name in selection.num_by_split
        }

    def write(self, path: str | Path, **output: Any) -> None:
        """Write the subset as `alignpot select` does. output: further keys of the output section, and `storage`."""
        from pipeline import api
        from pipeline.steps.select import write_found
        from pipeline.steps.told import tell_found, tell_selected

        storage = output.pop("storage", None)
        section = parse(Output, {"path": str(path), **output}, "the call")
        storage = storage if isinstance(storage, Storage) else parse(Storage, storage or {}, "storage of the call")
        source, place = self._source, Place.open(str(path), storage)
        with observed(
            "select", str(path), section.model_dump(mode="json"), lineage=isinstance(source, Dataset)
        ) as told:
            told.add(tell_found, source, self._found, section)
            told.begin()
            write_found(self._found, source, self._former, section, place)
            told.add(tell_selected, section, place, self.report)
        if section.hub is not None:
            api.push(path, section.hub, storage=storage)
        if section.table is not None:
            table = section.table.model_dump(include={"mode", "tag", "partition"})
            api.publish(path, section.table.url, **table, storage=storage)
