"""The errors a user can meet, and the exit code each one ends a command with.

    AlignpotError                 1   failed
    +-- ConfigError               2   a key, value or combination in the config or on the command line
    +-- SourceError               2   input that cannot be read or is of no known format
    +-- SchemaError               2   a table lacks a column or has it with another type
    +-- DataError                 2   values that no metric or selection can be computed from
    +-- ModelError                2   a model, tokenizer, template or adapter that does not fit
    +-- FingerprintError          2   the output holds a run of another fingerprint
    +-- StorageError              2   no such bucket, no credentials, no permission
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


class ConfigError(AlignpotError):
    """A key, value or combination in the config or on the command line is not usable."""

    exit_code: ClassVar[int] = 2


class SourceError(AlignpotError):
    """Input that cannot be read, is ambiguous, or is of no known format."""

    exit_code: ClassVar[int] = 2


class SchemaError(AlignpotError):
    """A table lacks a column that is needed, or has it with another type."""

    exit_code: ClassVar[int] = 2


class DataError(AlignpotError):
    """Values that a metric or a selection cannot be computed from, such as margins that are all equal."""

    exit_code: ClassVar[int] = 2


class ModelError(AlignpotError):
    """A model, tokenizer, chat template or adapter that is missing or does not fit the others."""

    exit_code: ClassVar[int] = 2


class FingerprintError(AlignpotError):
    """The output already holds a run whose results could differ from this one's."""

    exit_code: ClassVar[int] = 2


class StorageError(AlignpotError):
    """Storage said a final no: no such bucket, no credentials, no permission."""

    exit_code: ClassVar[int] = 2


class TooManyDroppedError(AlignpotError):
    """More rows were dropped than `run.max_dropped` allows."""

    exit_code: ClassVar[int] = 3


class IntegrityError(AlignpotError):
    """Counts, digests or row sums that must agree do not."""


class TemporaryError(AlignpotError):
    """Storage or a node went away for now; running the same command again goes on."""

    exit_code: ClassVar[int] = 75


def is_foreign(error: BaseException) -> bool:
    """Whether an error is neither one of ours nor the end of the process, so that the data at work may be to blame."""
    foreign = isinstance(error, Exception) and not isinstance(error, AlignpotError)
    return foreign or type(error).__name__ == "PanicException"  # of libraries in Rust; there is no importing it
