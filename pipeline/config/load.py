"""Reading a config: YAML and `key.path=value` overrides in, a checked `Config` or one ConfigError out.

Messages never repeat the file's own text, which may be a file that is no config at all.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from pipeline.config.problems import got_text, key_text, problems
from pipeline.config.root import Config
from pipeline.config.section import NO_CREDENTIALS, Section, carries_credentials
from pipeline.config.self_play import SelfPlayConfig
from pipeline.config.text import MOST_LEVELS, read_text, yaml_value
from pipeline.errors import ConfigError
from pipeline.shown import shown, shown_path

_MOST_BYTES: Final = 10_000_000
_Root = TypeVar("_Root", bound=Section)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML config and apply `key.path=value` overrides, whose values are YAML too.

    Raises:
        ConfigError: the file is missing or no mapping, an override is malformed, or a key or value is wrong.
    """
    return _parsed(Config, _loaded(path, overrides), shown_path(path))


def load_self_play(path: str | Path, overrides: Iterable[str] = ()) -> SelfPlayConfig:
    """`load_config` for the config of self-play."""
    return _parsed(SelfPlayConfig, _loaded(path, overrides), shown_path(path))


def parse_config(data: Mapping[str, Any], *, where: str = "config") -> Config:
    """Check a mapping of sections against the schema.

    Raises:
        ConfigError: naming every wrong key with the nearest known one, and every wrong value.
    """
    return _parsed(Config, data, where)


def parse_self_play(data: Mapping[str, Any], *, where: str = "config") -> SelfPlayConfig:
    """`parse_config` for the config of self-play."""
    return _parsed(SelfPlayConfig, data, where)


def _parsed(root: type[_Root], data: Mapping[str, Any], where: str) -> _Root:
    try:
        return root.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(f"  {problem}" for problem in problems(error, root))
        raise ConfigError(f"{where} is not usable:\n{lines}") from None


def _loaded(path: str | Path, overrides: Iterable[str]) -> dict[str, Any]:
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
    if data is None:
        raise ConfigError(f"{where} is empty; wanted a mapping of sections.")
    if not isinstance(data, dict):
        raise ConfigError(f"{where} holds a {type(data).__name__}; wanted a mapping of sections.")
    for override in overrides:
        _apply_override(data, override)
    return data


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    names = key.strip().split(".")
    if not sign or not all(names) or len(names) > MOST_LEVELS:
        raise ConfigError(
            f"--set{got_text(override)} is not usable; wanted key.path=value, such as select.fraction=0.1"
        )
    option = f"--set {key_text(names)}"
    try:
        value = yaml_value(text)
    except ValueError as error:
        raise ConfigError(f"{option}: the value {error}.") from None
    node = data
    for name in names[:-1]:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{option}: {shown(name)} holds a value, not a section")
        node = child
    node[names[-1]] = value
