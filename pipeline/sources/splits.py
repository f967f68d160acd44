"""Which files of a source are read: those of one split of one config.

What splits there are is told, in this order, by

    dataset_dict.json, state.json    of a folder that `datasets` saved
    README.md                        the key `configs` of its YAML header, as on the Hugging Face Hub
    file and folder names            as `datasets` reads them: data/test-00000-of-00002.parquet, train/, dev.jsonl

A split for training is the default if there is just one, or just one that is named after preferences, such as
`train_prefs` beside `train_sft`. Others must be asked for, so that rows of a test split never get into a training set
unasked.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from pipeline.config.load import yaml_value
from pipeline.errors import SourceError
from pipeline.shown import listed, shown, shown_path
from pipeline.sources.saved import DICT_FILE, STATE_FILE, refuse_nested, saved_splits

CARD_FILE: Final = "README.md"
ALL: Final = "all"

_TRAIN: Final = "train"
_PREFERENCES: Final = "pref"
_WORDS: Final = {
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "dev", "val"),
    _TRAIN: ("train", "training"),
}
_ONLY: Final = (_TRAIN,)  # what `datasets` calls the rows of a source without splits
_WORD: Final = {
    role: re.compile(rf"(?:^|[-._ 0-9=])(?:{'|'.join(words)})(?:[-._ 0-9]|$)", re.IGNORECASE)
    for role, words in _WORDS.items()
}
_SHARD: Final = re.compile(r"(.+)-\d{5}-of-\d{5}[^/]*\.")
_CARD_BYTES: Final = 1 << 20
_CARD_HELP: Final = (
    "Wanted: `configs: [{config_name: default, data_files: [{split: train, path: data/train-*}]}]`. Correct it, or "
    "remove it to have the splits told by the names of the files."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the keys source.split and source.config ask for."""

    split: str | None = None
    config: str | None = None


DEFAULT: Final = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The files that are read, by path relative to the source, and what else there is.

    Of a folder that `datasets` saved, `state.json` stands for the files that it lists.
    """

    files: Sequence[str]
    split: str | None = None
    """None: the source has no splits."""
    config: str | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    """Files of each split of the config."""
    configs: Sequence[str] = ()
    num_others: int = 0
    """Files of no split and of no config that is read."""

    def text(self) -> str:
        """What is read and what is not, for people; empty if the source has no splits."""
        if self.split is None:
            return ""
        read = {*self.splits} if self.split == ALL else {*self.split.split("+")}
        others = [f"{shown(name)} ({_files(count)})" for name, count in self.splits.items() if name not in read]
        others += [f"config {shown(name)}" for name in self.configs if name != self.config]
        others += [f"{_files(self.num_others)} of no split"] if self.num_others else []
        of_config = "" if self.config is None else f" of config {shown(self.config)}"
        left = f"; not read: {listed(others, show=str)}" if others else ""
        return f"{shown(self.split)}{of_config} ({_files(len(self.files))}){left}"


NO_SPLITS: Final = Part(files=())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """Files of a config by split, and all of them. A source without configs is one of no name."""

    splits: Mapping[str, Sequence[str]]
    files: Sequence[str]
    name: str | None = None
    is_default: bool = False


def part_of(fs: Any, base: str, names: Sequence[str], data: Sequence[str], wanted: Wanted) -> Part:
    """The part of a folder to read. names: its files; data: those that may hold rows.

    Raises:
        SourceError: no or several parts fit what is wanted, a description is damaged, or saved datasets lie deeper in
            the folder, which then may hold the same rows twice.
    """
    where = f"source {shown_path(base)}"
    is_saved = DICT_FILE in names or STATE_FILE in names
    configs = _saved_configs(fs, base, names) if is_saved else _told_configs(fs, base, names, data)
    config = _chosen_config(configs, wanted.config, where)
    split = _chosen_split(config.splits, wanted.split, where) if config.files else None
    if split in (None, ALL) or not config.splits:
        files = config.files
    else:
        files = [file for each in split.split("+") for file in config.splits[each]]
    if not files and config.name is not None:
        what = f"config {shown(config.name)}" + ("" if split is None else f", split {shown(split)}")
        raise SourceError(f"{where}: {CARD_FILE} describes {what}, but no data file of it is there. {_CARD_HELP}")
    told = {file for each in configs for of_split in each.splits.values() or [each.files] for file in of_split}
    return Part(
        files=files,
        split=split,
        config=config.name,
        splits={name: len(of_split) for name, of_split in config.splits.items()},
        configs=[each.name for each in configs if each.name is not None],
        num_others=0 if split in (None, ALL) or is_saved else len({*data} - told),
    )


def part_of_file(name: str, wanted: Wanted, where: str) -> Part:
    """A file that is the whole source; its name tells its split. Raises a SourceError if another one is wanted."""
    own = _split_of(name)
    if wanted.config is not None or wanted.split not in (None, ALL, own or _TRAIN):
        of_split = "no split" if own is None else f"split {shown(own)}"
        raise SourceError(f"{where} is one file, of {of_split}. Remove source.split and source.config.")
    return Part(files=[name], split=own, splits={} if own is None else {own: 1})


def _chosen_config(configs: Sequence[_Config], wanted: str | None, where: str) -> _Config:
    by_name = {config.name: config for config in configs}
    names = [shown(name) for name in by_name if name is not None]
    if wanted is not None:
        if wanted not in by_name:
            has = f"it has {', '.join(names)}" if names else f"it has none: no `configs` in the header of {CARD_FILE}"
            raise SourceError(f"{where} has no config {shown(wanted)}; {has}. Correct or remove source.config.")
        return by_name[wanted]
    marked = [config for config in configs if len(configs) == 1 or config.is_default or config.name == "default"]
    if len(marked) == 1:
        return marked[0]
    raise SourceError(f"{where} has several configs: {', '.join(names)}. Choose one: `source: {{config: {names[0]}}}`.")


def _chosen_split(splits: Mapping[str, Sequence[str]], wanted: str | None, where: str) -> str | None:
    """The name of the split to read, of several joined by +, or `all`; None if there are none and none is wanted."""
    has = ", ".join(f"{shown(name)} ({_files(len(files))})" for name, files in splits.items())
    if wanted is not None:
        missing = [name for name in wanted.split("+") if name not in (splits or _ONLY)]
        if missing and wanted != ALL:
            raise SourceError(
                f"{where} has no split {listed(missing)}; it has {has or 'none'}. Correct or remove source.split."
            )
        return wanted
    if not splits:
        return None
    roles = {name: _role_of(name) for name, files in splits.items() if files}
    training = [name for name, role in roles.items() if role == _TRAIN]
    training = [name for name in training if _PREFERENCES in name.lower()] or training
    if len(training) == 1 or [*roles.values()] == [None]:
        return next(iter(training or roles))
    first = shown(next(iter(training or splits)))
    raise SourceError(
        f"{where}: it is not clear which split to read. It has {has}. Choose one: `source: {{split: {first}}}`. "
        f"Several are joined by +, and `{ALL}` reads every file."
    )


def _saved_configs(fs: Any, base: str, names: Sequence[str]) -> list[_Config]:
    """The splits of a saved DatasetDict; none of a saved Dataset."""
    if DICT_FILE not in names:
        return [_Config(splits={}, files=[STATE_FILE])]
    splits = {name: [f"{name}/{STATE_FILE}"] for name in saved_splits(fs, base)}
    return [_Config(splits=splits, files=[path for paths in splits.values() for path in paths])]


def _told_configs(fs: Any, base: str, names: Sequence[str], data: Sequence[str]) -> list[_Config]:
    """What the card says, or else the names of the files."""
    refuse_nested(names, shown_path(base))
    where = f"source {shown_path(base)}: {CARD_FILE}"
    entries = _card_entries(fs, base, where) if CARD_FILE in names else []
    return [_config_of(entry, data, where) for entry in entries] or [_Config(splits=_by_name(data), files=data)]


def _card_entries(fs: Any, base: str, where: str) -> list[Mapping[str, Any]]:
    """The entries of `configs` in the header of the card."""
    with fs.open(posixpath.join(base, CARD_FILE), "rb") as file:
        text = file.read(_CARD_BYTES).decode("utf-8-sig", "replace")
    lines = [line.rstrip() for line in text.lstrip().splitlines()]
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return []
    try:
        values = yaml_value("\n".join(["", *lines[1 : lines.index("---", 1)]]))
    except ValueError as error:
        raise SourceError(f"{where}: its header {error}.") from None
    entries = values.get("configs") if isinstance(values, dict) else None
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(each, dict) and "config_name" in each for each in entries):
        raise SourceError(f"{where}: `configs` is no list of configs with names. {_CARD_HELP}")
    return entries


def _config_of(entry: Mapping[str, Any], data: Sequence[str], where: str) -> _Config:
    """A config of the card: the splits that its data_files name, or those that file names in its data_dir tell."""
    name, folder, given = str(entry["config_name"]), entry.get("data_dir") or "", entry.get("data_files")
    where = f"{where}: config {shown(name)}"
    is_default = entry.get("default") is True
    if given is None:
        inside = [path for path in data if _matches(path, _pattern(folder, "**", where))]
        return _Config(name=name, splits=_by_name(inside, folder), files=inside, is_default=is_default)
    each = given if isinstance(given, list) else [given]
    by_split = all(isinstance(one, dict) and {"split", "path"} <= {*one} for one in each)
    splits: dict[str, list[str]] = {}
    of_splits: list[Any] = each if by_split else [{"split": _TRAIN, "path": each}]
    for one in of_splits:
        patterns: list[Any] = one["path"] if isinstance(one["path"], list) else [one["path"]]
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise SourceError(f"{where}: its `data_files` are of no known form. {_CARD_HELP}")
        wanted = [_pattern(folder, pattern, where) for pattern in patterns]
        found = [path for path in data if any(_matches(path, pattern) for pattern in wanted)]
        splits[str(one["split"])] = list(dict.fromkeys([*splits.get(str(one["split"]), ()), *found]))
    files = list(dict.fromkeys(path for of_split in splits.values() for path in of_split))
    return _Config(name=name, splits=splits, files=files, is_default=is_default)


def _pattern(folder: Any, pattern: str, where: str) -> str:
    full = posixpath.normpath(posixpath.join(str(folder), pattern))
    if "://" in pattern or full.startswith(("/", "..")):
        raise SourceError(f"{where}: {shown(pattern)} lies outside the dataset. Give source.path the place it names.")
    return full


def _matches(path: str, pattern: str) -> bool:
    """Whether a pattern fits a path: * within a name, ** over folders. Takes no time that grows with its stars."""
    names = path.split("/")
    reached = {0}
    for piece in pattern.split("/"):
        if piece == "**":
            reached = {*range(min(reached, default=len(names) + 1), len(names) + 1)}
        else:
            reached = {at + 1 for at in reached if at < len(names) and fnmatchcase(names[at], piece)}
    return len(names) in reached


def _by_name(data: Iterable[str], folder: str = "") -> dict[str, list[str]]:
    """Files by the split that their path tells; those for training first, then those held out, then others."""
    found: dict[str, list[str]] = {}
    for path in data:
        split = _split_of(posixpath.relpath(path, folder) if folder else path)
        if split is not None:
            found.setdefault(split, []).append(path)
    roles = [_TRAIN, "validation", "test", None]
    return dict(sorted(found.items(), key=lambda item: roles.index(_role_of(item[0]))))


def _split_of(path: str) -> str | None:
    """The split that a path tells. A word for held-out rows wins over one for training.

    `NAME-00000-of-00002.parquet` is of split NAME if NAME holds such a word, or if the file lies in a folder data/.
    """
    *folders, name = path.split("/")
    role = next((role for role in _WORD if any(_role_of(each, role) for each in (*folders, name))), None)
    shard = _SHARD.match(name)
    if shard is None or _role_of(shard[1]) != role or (role is None and folders[-1:] != ["data"]):
        return role
    return shard[1]


def _role_of(name: str, of: str | None = None) -> str | None:
    """The role that a word in a name tells; with `of`, only whether it is that one."""
    return next((role for role, word in _WORD.items() if of in (None, role) and word.search(name)), None)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
