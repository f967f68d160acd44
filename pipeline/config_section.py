"""The base of every part of the config, and checks that several parts share."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, field_validator

from pipeline.shown import listed

SECRET_NAME: Final = re.compile(
    r"(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)token$|pwd$|secret|passw|api[_-]?key|access[_-]?key|credential", re.IGNORECASE
)
"""What an argument is called that may hold a secret; the special tokens of a vocabulary are none."""
_CREDENTIALS: Final = re.compile(
    r"""
      ^ [^\s/@:]* : (?!//|\d+(?:[/?\#]|$)) \S* @\S* $          # user:secret@host, but no host:port/folder@2
    | :// [^\s/@:]* : (?!\d+(?:[/?\#\s]|$)) \S* @             # the same with a scheme, in any text
    | ^ [\w+.-]+ :// [^/@]* : [^/@]* @                        # the same with white space in it
    | (?<!abfs)(?<!abfss)(?<!az) :// [^\s/?\#@]* @            # token@host; of abfs it is container@account
    | ^ [^\s/@:]+ @ [^\s/@:]+ : \d+ $                         # token@host:port
    | [?&\#] [\w.-]* (?:token|secret|passw(?:or)?d|pwd|api[_-]?key|access[_-]?key(?:id)?|credential|signature) =
    | [?&\#] (?:sig|auth|key|jwt) =
    """,
    re.IGNORECASE | re.VERBOSE,
)

_UNUSABLE: Final = re.compile("[\0\ud800-\udfff]")
NO_CREDENTIALS: Final = "must not carry credentials; use environment variables or an instance role"


def carries_credentials(text: str) -> bool:
    """Whether a text is, or holds, a URL or address with a user's secret, a token or a signature in it."""
    return _CREDENTIALS.search(text) is not None


class Section(BaseModel):
    """A part of the config: frozen, closed to keys it does not know, and without credentials in any value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @field_validator("*")
    @classmethod
    def _usable_texts(cls, value: Any) -> Any:
        for text in _texts(value):
            if carries_credentials(text):
                raise ValueError(NO_CREDENTIALS)
            if _UNUSABLE.search(text):
                raise ValueError("must not hold a null character, nor half of a surrogate pair")
        return value


def checked_url(url: str | None) -> str | None:
    """The path or URL, if alignpot may use it.

    Raises:
        ValueError: it is no storage.
    """
    if url is None:
        return None
    if url.startswith(("http://", "https://")):
        raise ValueError("must be a local path or an object-store URL such as s3://bucket/prefix")
    return url


def without_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a library, none of whose names, at any depth, is that of a secret.

    Raises:
        ValueError: one is.
    """
    if any(carries_credentials(name) for name in _names(arguments)):
        raise ValueError(NO_CREDENTIALS)
    secret = sorted({name for name in _names(arguments) if SECRET_NAME.search(name)})
    if secret:
        raise ValueError(f"must not carry credentials ({listed(secret)}); use environment variables")
    return arguments


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple, set)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from map(str, value)
    if isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _names(each)
