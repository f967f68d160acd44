"""Folders that `datasets` wrote with save_to_disk: which of their files hold the rows to read.

Only the two small JSON files that lie in such a folder are read; the library itself is not needed.
"""

import json
import posixpath
from collections.abc import Iterable
from typing import Any, Final

from pipeline.errors import SourceError
from pipeline.faults import is_missing
from pipeline.shown import listed, shown_path

_DICT_FILE: Final = "dataset_dict.json"
_STATE_FILE: Final = "state.json"
_INFO_FILE: Final = "dataset_info.json"
_TRAIN: Final = "train"


def dataset_files(fs: Any, base: str, found: Iterable[str], shown: str) -> list[str] | None:
    """Relative paths of the data files of a saved Dataset, or of the train or only split of a saved DatasetDict.

    None where the folder is neither and has neither below it. `shown` is the path as the user gave it.

    Raises:
        SourceError: the splits are several and none is called train, a description is damaged, or saved datasets lie
            deeper in the folder.
    """
    names = set(found)
    if _DICT_FILE in names:
        split = _split(_load(fs, base, _DICT_FILE).get("splits"), shown)
        return _listed(fs, base, f"{split}/")
    if _STATE_FILE in names:
        return _listed(fs, base, "")
    _refuse_nested(names, shown)
    return None


def _refuse_nested(names: set[str], shown: str) -> None:
    """A folder above saved datasets may hold the same rows twice, as splits or beside Parquet."""
    saved = {posixpath.dirname(name) for name in names if posixpath.basename(name) == _DICT_FILE}
    saved |= {
        folder
        for folder in map(posixpath.dirname, names)
        if {posixpath.join(folder, _STATE_FILE), posixpath.join(folder, _INFO_FILE)} <= names
        and posixpath.dirname(folder) not in saved
    }
    if saved:
        raise SourceError(
            f"source {shown} is no saved dataset itself, but holds some: {listed(sorted(saved)[:5])}. "
            "Give source.path one of these folders, or the folder of other files beside them."
        )


def _split(splits: Any, shown: str) -> str:
    names = [str(name) for name in splits] if isinstance(splits, list) else []
    if _TRAIN in names:
        return _TRAIN
    if len(names) == 1:
        return names[0]
    raise SourceError(
        f"source {shown} is a saved DatasetDict with the splits {names}, none of them {_TRAIN!r}. "
        f"Give source.path the folder of one split, such as {shown}/{shown_path(names[0] if names else 'train')}."
    )


def _listed(fs: Any, base: str, folder: str) -> list[str]:
    state = _load(fs, base, f"{folder}{_STATE_FILE}")
    try:
        return [f"{folder}{entry['filename']}" for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise SourceError(
            f"source {shown_path(base)}: {shown_path(folder)}{_STATE_FILE} lists no data files. Save the dataset again."
        ) from None


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
