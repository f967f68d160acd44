"""The errors a user can meet, and the exit code each one ends a command with.

    AlignpotError                 1   failed
    +-- UsageError                2   something that the user has to change:
    |   +-- ConfigError               a key, value or combination in the config or on the command line
    |   +-- SourceError               input that cannot be read or is of no known format
    |   +-- SchemaError               a table lacks a column or has it with another type
    |   +-- DataError                 values that no metric or selection can be computed from
    |   +-- ModelError                a model, tokenizer, template or adapter that does not fit
    |   +-- FingerprintError          the output holds a run of another fingerprint
    |   +-- StorageError              no such bucket, no credentials, no permission
    +-- TooManyDroppedError       3   more rows dropped than the config allows
    +-- IntegrityError            1   counts, digests or row sums that do not agree
    +-- TemporaryError           75   storage or a node went away; the same command goes on

A message says what, got, wanted and remedy, and names rows by id, never by text. None of them takes
arguments of its own, so that each survives pickling between processes.
"""

from typing import ClassVar

from pipeline.shown import message


class AlignpotError(Exception):
    """Base of every error that alignpot raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return message(super().__str__())


class UsageError(AlignpotError):
    """Something that the user has to change before the command can work."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """A key, value or combination in the config or on the command line is not usable."""


class SourceError(UsageError):
    """Input that cannot be read, is ambiguous, or is of no known format."""


class SchemaError(UsageError):
    """A table lacks a column that is needed, or has it with another type."""


class DataError(UsageError):
    """Values that a metric or a selection cannot be computed from, such as margins that are all equal."""


class ModelError(UsageError):
    """A model, tokenizer, chat template or adapter that is missing or does not fit the others."""


class FingerprintError(UsageError):
    """The output already holds a run whose results could differ from this one's."""


class StorageError(UsageError):
    """Storage said a final no: no such bucket, no credentials, no permission."""


class TooManyDroppedError(AlignpotError):
    """More rows were dropped than `run.max_dropped` allows."""

    exit_code: ClassVar[int] = 3


class IntegrityError(AlignpotError):
    """Counts, digests or row sums that must agree do not."""


class TemporaryError(AlignpotError):
    """Storage or a node went away for now; running the same command again goes on."""

    exit_code: ClassVar[int] = 75


def is_foreign(error: BaseException) -> bool:
    """Whether an error is neither ours nor the end of the process, so that the data at work may be to blame."""
    foreign = isinstance(error, Exception) and not isinstance(error, AlignpotError)
    return foreign or type(error).__name__ == "PanicException"  # of libraries in Rust; it cannot be imported
