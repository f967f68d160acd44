"""How far datasets are that are still being written: the parts that are there, of those that are planned."""

from dataclasses import dataclass

from pipeline.data.manifest import MANIFEST_FILE
from pipeline.data.parts import part_path
from pipeline.data.place import Place
from pipeline.data.run import RUN_FILE
from pipeline.data.sealed import read_sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetState:
    """A dataset that was begun. num_planned: 0 if it is not made of parts."""

    place: Place
    num_parts: int
    num_planned: int
    is_complete: bool

    def __str__(self) -> str:
        parts = f"{self.num_parts:,} of {self.num_planned:,} parts" if self.num_planned else "begun"
        return f"{self.place}: {'complete' if self.is_complete else parts}"


def datasets_below(place: Place) -> list[DatasetState]:
    """Every dataset that was begun at `place` or below it, by name.

    Raises an IntegrityError if one is damaged, and a StorageError or TemporaryError if the store cannot be read.
    """
    names = place.sizes().keys()
    states = []
    for prefix in sorted(name.removesuffix(RUN_FILE) for name in names if f"/{name}".endswith(f"/{RUN_FILE}")):
        folder = place / prefix.rstrip("/") if prefix else place
        plan = read_sealed(folder / RUN_FILE, records="shards") or {}
        shards = [] if plan.get("formats") else plan.get("shards", [])
        states.append(
            DatasetState(
                place=folder,
                num_parts=sum(f"{prefix}{part_path(index)}" in names for index in range(len(shards))),
                num_planned=len(shards),
                is_complete=f"{prefix}{MANIFEST_FILE}" in names,
            )
        )
    return states
