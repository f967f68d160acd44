"""Folders that `save_to_disk` of `datasets` made. Only their small JSON files are read; the library is not needed."""

import json
import posixpath
from collections.abc import Iterable
from typing import Any, Final

from pipeline.errors import SourceError
from pipeline.faults import is_missing
from pipeline.shown import listed, shown_path

DICT_FILE: Final = "dataset_dict.json"
STATE_FILE: Final = "state.json"
INFO_FILE: Final = "dataset_info.json"


def saved_splits(fs: Any, base: str) -> list[str]:
    """The names of the splits of a DatasetDict, each of which has a folder. Raises a SourceError if there is none."""
    splits = _load(fs, base, DICT_FILE).get("splits")
    if not isinstance(splits, list) or not splits:
        raise SourceError(f"source {shown_path(base)}: {DICT_FILE} lists no splits. Save the dataset again.")
    return [str(name) for name in splits]


def saved_files(fs: Any, base: str, path: str) -> list[str]:
    """The data files that a `state.json` lists. Raises a SourceError if it is damaged."""
    folder = path.removesuffix(STATE_FILE)
    state = _load(fs, base, path)
    try:
        return [f"{folder}{entry['filename']}" for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise SourceError(
            f"source {shown_path(base)}: {shown_path(path)} lists no data files. Save the dataset again."
        ) from None


def only_saved(names: set[str], data: Iterable[str]) -> str | None:
    """The folder of a saved dataset that holds all data of this folder, such as `hf` of an export for TRL.

    names: all files of the folder. data: those that hold rows.
    """
    tops = {name.split("/")[0] for name in data}
    marks = (DICT_FILE, STATE_FILE)
    if len(tops) != 1 or not names.isdisjoint(marks):
        return None
    [top] = tops
    return None if names.isdisjoint(f"{top}/{mark}" for mark in marks) else top


def refuse_nested(names: Iterable[str], where: str) -> None:
    """Raise a SourceError if saved datasets lie deeper in a folder, which then may hold the same rows twice."""
    dicts = {posixpath.dirname(name) for name in names if posixpath.basename(name) == DICT_FILE}
    with_state, with_info = (
        {posixpath.dirname(name) for name in names if posixpath.basename(name) == file}
        for file in (STATE_FILE, INFO_FILE)
    )
    saved = dicts | {folder for folder in with_state & with_info if posixpath.dirname(folder) not in dicts}
    if saved:
        raise SourceError(
            f"source {where} is no saved dataset itself, but holds some: {listed(sorted(saved)[:5])}. "
            "Give source.path one of these folders, or the folder of other files beside them."
        )


def _load(fs: Any, base: str, name: str) -> dict[str, Any]:
    where = f"{shown_path(base)}: {shown_path(name)}"
    try:
        loaded = json.loads(fs.cat_file(posixpath.join(base, name)))
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        raise SourceError(f"source {where} is missing. Save the dataset again.") from None
    except (ValueError, RecursionError):
        raise SourceError(f"source {where} is no JSON. Save the dataset again.") from None
    if not isinstance(loaded, dict):
        raise SourceError(f"source {where} holds no JSON object. Save the dataset again.")
    return loaded
