"""What a key takes, in words, read off its type: for messages and for the reference."""

import datetime
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic.fields import FieldInfo

from pipeline.config.section import OneOf, Section

_NOUNS: Final = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    datetime.date: "a date",
    Any: "values",
}
_BOUNDS: Final = {Gt: "above {0.gt:g}", Ge: "of at least {0.ge:g}", Le: "at most {0.le:g}"}


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
        return f"{start} {', '.join(_alternatives(parts[0], (), mark))}"
    if origin is dict:
        return f"a mapping of names to {', '.join(_alternatives(parts[1], (), mark))}"
    bounds = [_BOUNDS[type(m)].format(m) for m in metadata if type(m) in _BOUNDS]
    return f"{_NOUNS[annotation]} {', '.join(bounds)}".strip()
