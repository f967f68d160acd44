"""From text to a checked config: files up to a size, YAML up to a number of values, `--set`, one ConfigError.

Messages never repeat the text of a file: it may be the wrong file and hold anything.
"""

import io
import os
import select
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import ValidationError

from pipeline.config.problems import got_text, key_text, problems
from pipeline.config.section import NO_CREDENTIALS, Section, carries_credentials
from pipeline.errors import ConfigError
from pipeline.shown import shown, shown_path

_MOST_BYTES: Final = 10_000_000
_MOST_LEVELS: Final = 100
_MOST_VALUES: Final = 100_000
_MOST_DIGITS: Final = 1_000
_PATIENCE_S: Final = 10.0
_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Root = TypeVar("_Root", bound=Section)


def load(root: type[_Root], path: str | Path, overrides: Iterable[str]) -> _Root:
    """Read a YAML config and apply `key.path=value` overrides, whose values are YAML too.

    Raises:
        ConfigError: the file is missing or not a mapping, an override is malformed, or a key or value is wrong.
    """
    return parse(root, read_sections(path), shown_path(path), overrides)


def read_sections(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML config, unchecked. Raises a ConfigError if it cannot be read or is not a mapping."""
    if carries_credentials(str(path)):
        raise ConfigError(f"the path of the config {NO_CREDENTIALS}.")
    where = f"config {shown_path(path)}"
    try:
        text = read_text(path, most_bytes=_MOST_BYTES, pipes=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{where} cannot be read: {reason}. Give the path of a YAML file.") from None
    try:
        data = yaml_value(text)
    except ValueError as error:
        raise ConfigError(f"{where} {error}.") from None
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise ConfigError(f"{where} {found}; wanted a mapping of sections.")
    return data


def parse(root: type[_Root], data: Mapping[str, Any], where: str, overrides: Iterable[str] = ()) -> _Root:
    """Check a mapping of sections against the schema, with `key.path=value` overrides.

    Raises:
        ConfigError: an override is malformed, or naming every wrong key with the nearest known one, and every wrong
            value.
    """
    data = dict(data)
    for override in overrides:
        _apply(data, override)
    try:
        return root.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(f"  {problem}" for problem in problems(error, root))
        raise ConfigError(f"{where} is not usable:\n{lines}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    names = key.strip().split(".")
    if not sign or not all(names) or len(names) > _MOST_LEVELS:
        raise ConfigError(
            f"--set{got_text(override)} is not usable; wanted key.path=value, such as select.fraction=0.1"
        )
    option = f"--set {key_text(names)}"
    try:
        value = yaml_value(text)
    except ValueError as error:
        raise ConfigError(f"{option}: the value {error}.") from None
    for name in names[:-1]:
        if data.get(name) is None:
            data[name] = {}
        if not isinstance(data[name], dict):
            raise ConfigError(f"{option}: {shown(name)} holds a value, not a section")
        data = data[name]
    data[names[-1]] = value


def read_text(path: str | Path, *, most_bytes: int, pipes: bool = False) -> str:
    """The UTF-8 text of a file.

    pipes: also read pipes and devices, if their text ends within some seconds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such text; the message says why.
    """
    data = bytearray()
    deadline = time.monotonic() + _PATIENCE_S
    # Opening a pipe without a writer would block.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        if not pipes and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        ready = select.poll()
        ready.register(file, select.POLLIN)
        while len(data) <= most_bytes:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ValueError(f"its text did not end within {_PATIENCE_S:.0f} s")
            chunk = file.read(1 << 16)
            if not chunk:
                break
            data += chunk
    if len(data) > most_bytes:
        raise ValueError(f"it is longer than {most_bytes:,} bytes")
    try:
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


def yaml_value(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: the message completes a sentence that begins with a name for the text.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader that also counts
    except _OversizeError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(
            f"is not YAML{place}. Check the indentation, quotes and brackets there and just before"
        ) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(
            f"is not YAML ({type(error).__name__}): a character, number or date in it is not valid"
        ) from None


class _OversizeError(ValueError):
    pass


class _Loader(yaml.SafeLoader):
    """Counts values and levels with every alias written out, before any object is made of them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_values = self._level = self._deepest = 0
        self._sizes: dict[yaml.Node | None, tuple[int, int]] = {}
        """Values in a node, and levels below it."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        num_before, deepest_before = self._num_values, self._deepest
        is_alias = self.check_event(yaml.AliasEvent)
        self._level += 1
        self._deepest = self._level
        self._add(1)
        node = super().compose_node(parent, index)
        if not is_alias:
            self._sizes[node] = (self._num_values - num_before, self._deepest - self._level)
        elif node not in self._sizes:
            raise _OversizeError("holds an alias of a value that contains it, which has no end")
        else:
            num_values, num_levels = self._sizes[node]
            self._deepest += num_levels
            self._add(num_values - 1)
        self._level -= 1
        self._deepest = max(self._deepest, deepest_before)
        # Numbers of base 60 take time that grows with the square of their length.
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > _MOST_DIGITS:
            raise _OversizeError(f"holds a number of more than {_MOST_DIGITS:,} digits")
        return node

    def _add(self, num_values: int) -> None:
        self._num_values += num_values
        if self._num_values > _MOST_VALUES:
            raise _OversizeError(f"holds more than {_MOST_VALUES:,} values, those that aliases repeat included")
        if self._deepest > _MOST_LEVELS:
            raise _OversizeError(f"is nested deeper than {_MOST_LEVELS} levels")
