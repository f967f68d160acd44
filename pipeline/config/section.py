"""The base of every section: what a section refuses, and which of its keys are part of a fingerprint."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, JsonValue, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from pipeline.shown import listed

LAYOUT: Final[dict[str, JsonValue]] = {"fingerprint": "no"}
"""Mark of a key that lays out the work and moves no result (rounding aside): it may change while a run goes on."""
BY_CONTENT: Final[dict[str, JsonValue]] = {"fingerprint": "by content"}
"""Mark of a key that names data or weights: the fingerprint holds their digest or commit instead of the name."""
PER_OUTPUT: Final[dict[str, JsonValue]] = {"fingerprint": "of its outputs"}
"""Mark of a section of self-play that is part of the fingerprint of what it makes, but not of the whole run."""

SECRET_NAME: Final = re.compile(
    r"(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)token$|pwd$|secret|passw|api[_-]?key|access[_-]?key|credential", re.IGNORECASE
)
"""Names of arguments that may hold a secret. The special tokens of a vocabulary are none."""
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
_TABLE: Final = re.compile(r"^(?:delta|lance)://")
_UNUSABLE: Final = re.compile("[\0\ud800-\udfff]")
NO_CREDENTIALS: Final = "must not carry credentials; use environment variables or an instance role"


class Section(BaseModel):
    """A part of the config: frozen, closed to unknown keys, and without credentials in any value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)

    @field_validator("*")
    @classmethod
    def _usable_texts(cls, value: Any) -> Any:
        for text in _texts(value):
            if carries_credentials(text):
                raise ValueError(NO_CREDENTIALS)
            if _UNUSABLE.search(text):
                raise ValueError("must not hold a null character or half of a surrogate pair")
        return value

    def fingerprint(self) -> dict[str, Any]:
        """The keys that can change a result, as JSON values. Keys and sections with a mark are left out."""
        found = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if mark_of(field) or mark_of(type(self)) or (isinstance(value, Section) and mark_of(type(value))):
                found.pop(name, None)
            elif isinstance(value, Section):
                found[name] = value.fingerprint()
        return found


def mark_of(holder: FieldInfo | type[Section]) -> str | None:
    """The mark of a key or of a whole section: how it takes part in fingerprints, if not by its value."""
    extra = holder.json_schema_extra if isinstance(holder, FieldInfo) else holder.model_config.get("json_schema_extra")
    return str(extra["fingerprint"]) if isinstance(extra, dict) and "fingerprint" in extra else None


def given_only(fingerprint: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """A fingerprint without those optional keys whose value is None: so a new key leaves former fingerprints alone."""
    return {name: value for name, value in fingerprint.items() if name not in optional or optional[name] is not None}


@dataclass(frozen=True, slots=True)
class OneOf:
    """Marks a text that names an entry of a registry; any other text is refused."""

    names: Iterable[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate as a Literal of the names."""
        return core_schema.literal_schema([*self.names])


def without_table(url: str) -> str:
    """The path or URL of a table that is named by it, as in `delta://s3://bucket/prefs@3`; other URLs as they are."""
    return _TABLE.sub("", url)


def carries_credentials(text: str) -> bool:
    """Whether a text contains a URL or address with a password, a token or a signature."""
    return _CREDENTIALS.search(without_table(text)) is not None


def _usable_url(url: str) -> str:
    if carries_credentials(url):
        raise ValueError(NO_CREDENTIALS)
    if url.startswith(("http://", "https://")):
        raise ValueError("must be a local path or an object-store URL such as s3://bucket/prefix")
    return url


Url = Annotated[str, AfterValidator(_usable_url)]
"""A local path or the URL of an object store."""


def _without_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    names = list(_texts(arguments, of_names=True))
    if any(map(carries_credentials, names)):
        raise ValueError(NO_CREDENTIALS)
    secret = sorted({name for name in names if SECRET_NAME.search(name)})
    if secret:
        raise ValueError(f"must not carry credentials ({listed(secret)}); use environment variables")
    return arguments


Arguments = Annotated[dict[str, Any], AfterValidator(_without_secrets)]
"""Arguments of a library by name. No name, at any depth, may be that of a secret."""


def _texts(value: Any, *, of_names: bool = False) -> Iterator[str]:
    """The texts of a value at any depth, or instead of them the names in its mappings."""
    if isinstance(value, str) and not of_names:
        yield value
    if isinstance(value, Mapping) and of_names:
        yield from map(str, value)
    if isinstance(value, (Mapping, list, tuple, set)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each, of_names=of_names)
