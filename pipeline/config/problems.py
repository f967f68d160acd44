"""What is wrong with a config, in words: the key, what it got, what it takes, and the nearest known key.

No message repeats credentials.
"""

import datetime
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.section import NO_CREDENTIALS, OneOf, Section, carries_credentials
from pipeline.shown import quoted, shown

_NOUNS: Final = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    datetime.date: "a date",
    Any: "values",
}
_BOUNDS: Final = {Gt: "above {0.gt:g}", Ge: "of at least {0.ge:g}", Le: "at most {0.le:g}"}


def problems(error: ValidationError, root: type[Section]) -> Iterator[str]:
    """One line for each problem."""
    yield from dict.fromkeys(_described(problem, root) for problem in error.errors(include_url=False))


def key_text(names: Iterable[str]) -> str:
    """A key with the sections above it, unless it carries a secret."""
    key = ".".join(names)
    return "..." if carries_credentials(key) else shown(key, 200)


def got_text(value: Any) -> str:
    """The value for a message, unless it may be long or carry a secret."""
    if value is None:
        return " (got nothing)"
    return f" (got {quoted(value)})" if _is_plain(value) else ""


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) and not carries_credentials(str(value))


@dataclass(slots=True)
class _Place:
    """Where a problem lies.

    path: the keys. kinds: the kinds of section that stand there, or that an unknown key stands in. backend: that of the
    section. key: the last known one.
    """

    kinds: list[type[Section]]
    path: list[str] = field(default_factory=list)
    backend: str = ""
    key: FieldInfo | None = None

    def enter(self, part: str) -> None:
        """Take the next part of the location: a key, a backend, or a place inside the value of a key."""
        own = [kind for kind in self.kinds if not self.backend or self.backend in _backends(kind)]
        known = next((kind.model_fields[part] for kind in own if part in kind.model_fields), None)
        if not self.backend and any(part in _backends(kind) for kind in self.kinds):
            self.backend = part
        elif known is not None:
            self.path.append(part)
            self.key, self.kinds = known, sections_of(known.annotation)
        elif self.key is None or self.kinds:
            self.path.append(part)


def _backends(kind: type[Section]) -> tuple[str, ...]:
    backend = kind.model_fields.get("backend")
    return () if backend is None else get_args(backend.annotation)


def _described(problem: Any, root: type[Section]) -> str:
    loc = problem["loc"]
    if len(loc) > 1 and loc[0] == "sweep" and isinstance(loc[1], str):
        return f"sweep, variant {shown(loc[1])}: {_described({**problem, 'loc': loc[2:]}, root)}"
    place = _Place(kinds=[root])
    for part in loc:
        place.enter(str(part))
    if problem["type"] == "union_tag_invalid":
        place.path.append("backend")
    key = key_text(place.path)
    return f"{key}: {_text(problem, place)}" if key else _text(problem, place)


def _text(problem: Any, place: _Place) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "missing":
        text = "required, but not given"
    elif kind == "extra_forbidden":
        text = _unknown(place)
    elif kind == "union_tag_invalid":
        wrong = problem["ctx"]["tag"]
        named = f"{quoted(wrong)} is unknown" if _is_plain(wrong) else NO_CREDENTIALS
        text = f"{named}; wanted {' or '.join(name for kind in place.kinds for name in _backends(kind))}"
    elif kind == "model_type":
        fields = [item for kind in place.kinds for item in kind.model_fields.items()]
        example = next((name for name, known in fields if known.is_required()), fields[0][0])
        text = f"wanted a section such as {{{example}: ...}}{got_text(value)}"
    elif kind == "tuple_type" and (place.key is None or get_origin(place.key.annotation) is tuple):
        text = "wanted a list" + (f", such as [{shown(value)}]" if _is_plain(value) else "")
    elif kind not in ("value_error", "string_pattern_mismatch") and place.key is not None:
        text = f"wanted {takes(place.key)}{got_text(value)}"
    else:
        text = str(problem["msg"]).removeprefix("Value error, ")
        text += "" if value is None or "credentials" in text else got_text(value)
    return text


def _unknown(place: _Place) -> str:
    name = place.path[-1]
    takers = {key: (_backends(kind) or ("",))[0] for kind in place.kinds[::-1] for key in kind.model_fields}
    own = {key for kind in place.kinds if place.backend in _backends(kind) for key in kind.model_fields}
    if place.backend and name in takers:
        section = key_text(place.path[:-1])
        return f"not used with backend {place.backend}; set {section}.backend: {takers[name]}, or leave the key out"
    near = difflib.get_close_matches(name, list(takers), n=1)
    if not near:
        return f"unknown key; known keys here: {', '.join(sorted(takers))}"
    needs = f", with backend: {takers[near[0]]}" if place.backend and near[0] not in own else ""
    return f"unknown key; did you mean {near[0]}{needs}?"


def takes(field: FieldInfo, mark: str = "") -> str:
    """The values that a key takes, such as "auto or a number of at least 0"; `mark` is put around fixed words."""
    words = _alternatives(field.annotation, field.metadata, mark)
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def sections_of(annotation: Any) -> list[type[Section]]:
    """The kinds of section that a type holds, in its order."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


def _alternatives(annotation: Any, metadata: Iterable[Any], mark: str) -> list[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if sections_of(annotation):
        return ["a list of sections" if origin is tuple else "a section"]
    if origin in (Union, UnionType):
        return [word for part in parts if part is not NoneType for word in _alternatives(part, metadata, mark)]
    if origin is Annotated:
        inner = [m for item in parts[1:] for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _alternatives(parts[0], [*inner, *metadata], mark)
    names = parts if origin is Literal else [name for m in metadata if isinstance(m, OneOf) for name in m.names]
    if names:
        return [f"{mark}{name}{mark}" for name in names]
    return [_words(annotation, metadata, mark)]


def _words(annotation: Any, metadata: Iterable[Any], mark: str) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        start = "a list, not empty, of" if any(isinstance(m, MinLen) for m in metadata) else "a list of"
        start = start if parts[-1] is ... else f"a list of {len(parts)}, each"
        return f"{start} {', '.join(_alternatives(parts[0], (), mark))}"
    if origin is dict:
        return f"a mapping of names to {', '.join(_alternatives(parts[1], (), mark))}"
    bounds = [_BOUNDS[type(m)].format(m) for m in metadata if type(m) in _BOUNDS]
    return f"{_NOUNS[annotation]} {', '.join(bounds)}".strip()
