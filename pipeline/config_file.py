"""Reading a config file: YAML and `key.path=value` overrides in, a checked `Config` or one ConfigError out.

Messages name the key, what it got and what it takes, with the nearest known key, and never repeat credentials or the
file's own text.
"""

import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.config import Config
from pipeline.config_section import NO_CREDENTIALS, carries_credentials
from pipeline.config_self_play import SelfPlayConfig
from pipeline.config_text import MOST_LEVELS, read_text, yaml_value
from pipeline.errors import ConfigError
from pipeline.shown import quoted, shown, shown_path

_MOST_BYTES: Final = 10_000_000
_Root = TypeVar("_Root", bound=BaseModel)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML config and apply `key.path=value` overrides, whose values are YAML too.

    Raises:
        ConfigError: the file is missing or no mapping, an override is malformed, or a key or value is wrong.
    """
    return _parse(Config, _with_overrides(path, overrides), where=shown_path(path))


def load_self_play(path: str | Path, overrides: Iterable[str] = ()) -> SelfPlayConfig:
    """`load_config` for the config of self-play."""
    return _parse(SelfPlayConfig, _with_overrides(path, overrides), where=shown_path(path))


def parse_config(data: Mapping[str, Any], *, where: str = "config") -> Config:
    """Check a mapping of sections against the schema.

    Raises:
        ConfigError: naming every wrong key with the nearest known one, and every wrong value.
    """
    return _parse(Config, data, where=where)


def parse_self_play(data: Mapping[str, Any], *, where: str = "config") -> SelfPlayConfig:
    """`parse_config` for the config of self-play."""
    return _parse(SelfPlayConfig, data, where=where)


def _with_overrides(path: str | Path, overrides: Iterable[str]) -> dict[str, Any]:
    where = shown_path(path)
    data = _loaded(path, where)
    if data is None:
        raise ConfigError(f"config {where} is empty; wanted a mapping of sections.")
    if not isinstance(data, dict):
        raise ConfigError(f"config {where} holds a {type(data).__name__}; wanted a mapping of sections.")
    for override in overrides:
        _apply_override(data, override)
    return data


def _parse(root: type[_Root], data: Mapping[str, Any], *, where: str) -> _Root:
    try:
        return root.model_validate(data)
    except ValidationError as error:
        problems = dict.fromkeys(_of_variant(problem, root) for problem in error.errors(include_url=False))
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"{where} is not usable:\n{lines}") from None


def _loaded(path: str | Path, where: str) -> Any:
    """What the YAML file holds. Messages never repeat its text, which may be a file that is no config at all."""
    if carries_credentials(str(path)):
        raise ConfigError(f"the path of the config {NO_CREDENTIALS}.")
    try:
        text = read_text(path, most_bytes=_MOST_BYTES, pipes=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"config {where} cannot be read: {reason}. Give the path of a YAML file.") from None
    try:
        return yaml_value(text)
    except ValueError as error:
        raise ConfigError(f"config {where} {error}.") from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    names = key.strip().split(".")
    if not sign or not all(names) or len(names) > MOST_LEVELS:
        raise ConfigError(f"--set{_got(override)} is not usable; wanted key.path=value, such as select.fraction=0.1")
    option = f"--set {_key(names)}"
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


def _of_variant(problem: Any, root: type[BaseModel]) -> str:
    """The problem in words; that of a sweep's variant under its name, as if the variant were a config."""
    loc = problem["loc"]
    if len(loc) > 1 and loc[0] == "sweep" and isinstance(loc[1], str):
        return f"sweep, variant {shown(loc[1])}: {_describe({**problem, 'loc': loc[2:]}, root)}"
    return _describe(problem, root)


def _describe(problem: Any, root: type[BaseModel]) -> str:
    # Union tags (torch, columns, ...) stand in the location behind the section; they are no keys of the file.
    path, tag = [str(part) for part in problem["loc"]], ""
    if len(path) > 1 and path[0] in _BACKENDS and path[1] in _BACKENDS[path[0]]:
        tag = path.pop(1)
    kind, value = problem["type"], problem["input"]
    key = _key(path)
    if kind in ("extra_forbidden", "missing"):
        return f"{key}: {'required, but not given' if kind == 'missing' else _unknown_key(path, tag, root)}"
    if kind == "union_tag_invalid":
        wrong = problem["ctx"]["tag"]
        named = f"{quoted(wrong)} is unknown" if _plain(wrong) else NO_CREDENTIALS
        return f"{key}.backend: {named}; wanted {' or '.join(_BACKENDS[path[0]])}"
    for name, wanted in _SEVERAL_KINDS.items():  # one problem for each kind that it may be
        if name in path[1:-1]:
            return f"{_key(path[: path.index(name) + 1])}: wanted {wanted}{_got(value)}"
    if kind == "model_type":
        example = "model" if key in ("policy", "reference") else _known_keys(path, root)[0]
        return f"{key}: wanted a section such as {{{example}: ...}}{_got(value)}"
    if kind == "tuple_type":
        return f"{key}: wanted a list" + (f", such as [{shown(value)}]" if _plain(value) else "")
    message = str(problem["msg"]).removeprefix("Value error, ")
    got = "" if value is None or "credentials" in message else _got(value)
    return (f"{key}: " if key else "") + message + got


def _unknown_key(path: list[str], tag: str, root: type[BaseModel]) -> str:
    name, kinds = path[-1], _kinds(path[:-1], root)
    own = next((kind.model_fields for kind in kinds if tag in _backends_of(kind)), {})
    backends = [(b, kind) for b in _BACKENDS.get(path[0], ())[::-1] for kind in kinds if b in _backends_of(kind)]
    takers = {key: backend for backend, kind in backends for key in kind.model_fields}
    if tag and name in takers:
        return f"not used with backend {tag}; set {path[0]}.backend: {takers[name]}, or leave the key out"
    known = _known_keys(path[:-1], root)
    near = difflib.get_close_matches(name, known, n=1)
    if not near:
        return f"unknown key; known keys here: {', '.join(sorted(known))}"
    needs = f", with backend: {takers[near[0]]}" if tag and near[0] not in own else ""
    return f"unknown key; did you mean {near[0]}{needs}?"


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) and not carries_credentials(str(value))


def _got(value: Any) -> str:
    """The value for a message, unless it may be long or carry a secret."""
    if value is None:
        return " (got nothing)"
    return f" (got {quoted(value)})" if _plain(value) else ""


def _key(names: Iterable[str]) -> str:
    """A key with those above it, unless it carries a secret."""
    key = ".".join(names)
    return "..." if carries_credentials(key) else shown(key, 200)


_SEVERAL_KINDS: Final = {
    "num_gpus": "auto or a number of at least 0",
    "weight": "auto or a number of at least 0",
    "quotas": "proportional, equal, or a positive weight for each group",
}
_BACKENDS: Final = {
    "policy": ("torch", "vllm", "columns"),
    "reference": ("torch", "vllm", "columns"),
    "reward": ("columns", "classifier"),
}


def _known_keys(path: list[str], root: type[BaseModel]) -> list[str]:
    """Keys of the section at `path`; of the sweep, those of a variant."""
    return list(dict.fromkeys(key for kind in _kinds(path, root) for key in kind.model_fields))


def _kinds(path: list[str], root: type[BaseModel]) -> list[type[BaseModel]]:
    """The kinds of section that may stand at `path`."""
    return _sections(root.model_fields.get(path[0])) if path else [root]


def _backends_of(kind: type[BaseModel]) -> tuple[str, ...]:
    field = kind.model_fields.get("backend")
    return () if field is None else typing.get_args(field.annotation)


def _sections(field: Any) -> list[type[BaseModel]]:
    """The kinds of section that a field may hold, the one with most keys first."""
    pending, found = [getattr(field, "annotation", None)], []
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        pending += typing.get_args(kind)
    return sorted(found, key=lambda section: -len(section.model_fields))
