"""Pages of subsets that were written before: the same as the one beside the rows, or with examples."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.errors import ConfigError
from pipeline.faults import storage_errors
from pipeline.report import Corner, about, examples, report_page
from pipeline.selection.ranking import Query
from pipeline.shown import shown_path
from pipeline.steps.select import load_reports, open_scored, select_rows


def write_pages(config: Config, path: Path, num_examples: int) -> Iterator[str]:
    """Write the pages of subsets; those of a sweep have the variant in their name. Raises as `pages`."""
    for name, page in pages(config, num_examples):
        yield write_page(path.with_stem(f"{path.stem}-{name}") if config.sweep else path, page)


def write_page(path: Path, page: str) -> str:
    """Write a page; what was written, in words."""
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    return f"page: {shown_path(path)}"


def pages(config: Config, num_examples: int = 0) -> Iterator[tuple[str, str]]:
    """Name and page of each subset at `output.path`. With examples, the rows are ranked again to find them.

    Raises:
        SourceError: there is no complete subset.
        ConfigError: examples are asked for, and the config selects other pairs than the subset holds.
    """
    for variant, report in zip(config.variants(), load_reports(config), strict=True):
        assert variant.output is not None  # noqa: S101 - load_reports read it
        place = Place.open(variant.output.path, variant.storage)
        manifest = Dataset.open(place, SUBSET).manifest
        corners = _corners(variant, report, num_examples) if num_examples else []
        yield place.root.rstrip("/").rpartition("/")[2], report_page(report, about(manifest, manifest.extra), corners)


def _corners(config: Config, report: dict[str, Any], num: int) -> Sequence[Corner]:
    if config.select is None:
        raise ConfigError("examples are found by selecting again: give the config a select section.")
    scored = open_scored(config)
    query = Query(objective=config.objective, metric=config.metric, rule=config.select)
    found, _ = select_rows(scored, query, config.storage)
    if found.selection.id_digest != report["selection"]["id_digest"]:
        raise ConfigError(
            f"the config selects other pairs of {shown_path(config.scored)} than the subset holds. Give the config "
            "that the subset was made with."
        )
    return examples(found, scored, num)
