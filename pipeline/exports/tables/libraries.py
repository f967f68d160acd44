"""How the libraries of tables are reached: locations, options of stores, and their errors as errors of alignpot."""

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from pipeline import config
from pipeline.data.place import Place
from pipeline.errors import AlignpotError, ConfigError, StorageError, TemporaryError
from pipeline.faults import translated

_MISSING: Final = frozenset({"NoSuchTableError", "NoSuchIcebergTableError", "NoSuchNamespaceError"})
_BUSY: Final = frozenset({"ServiceUnavailableError", "ServerError", "TooManyRequestsError", "OperationalError"})
_DENIED: Final = frozenset(
    {"UnauthorizedError", "ForbiddenError", "AuthorizationExpiredError", "OAuthError", "SignError"}
)
_DENIED_TEXT: Final = re.compile(r"access.?denied|forbidden|invalid.?access.?key|signature|\b40[13]\b", re.IGNORECASE)


def location_of(place: Place) -> str:
    """The path or URL of a place, as the libraries want it."""
    return place.root if place.is_local else str(place.fs.unstrip_protocol(place.root))


def store_options(place: Place, storage: config.Storage) -> dict[str, str] | None:
    """How deltalake and lance reach the place; they find the credentials themselves."""
    if not hasattr(place.fs, "call_s3"):
        return None
    endpoint = storage.endpoint_url
    return {
        **({} if endpoint is None else {"aws_endpoint": endpoint}),
        **({"aws_allow_http": "true"} if endpoint is not None and endpoint.startswith("http://") else {}),
        **({} if storage.region is None else {"aws_region": storage.region}),
        **({"aws_skip_signature": "true"} if storage.anonymous else {}),
    }


@contextlib.contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Raise what a library of tables throws inside the block as an error about the table `where`.

    The text of the library is left out: it may repeat URLs and keys.
    """
    try:
        yield
    except AlignpotError:
        raise
    except Exception as error:  # noqa: BLE001 - the libraries raise errors of many kinds, some of them mere Exceptions
        raise _as_ours(error, where) from None


def _as_ours(error: Exception, where: str) -> AlignpotError:
    name = type(error).__name__
    if name == "NotInstalledError":
        return ConfigError(f"{where}: its catalog needs another package. {str(error).splitlines()[0]}")
    if name in _MISSING:
        return StorageError(f"{where}: the catalog has no such namespace ({name}). Create it, or correct the name.")
    if name in _DENIED or (isinstance(error, OSError) and _DENIED_TEXT.search(str(error))):
        return StorageError(
            f"{where}: access is denied ({name}). Check the credentials of the catalog and of the store."
        )
    known = translated(error, where)
    if known is not None:
        return known
    if name in _BUSY or isinstance(error, OSError):
        return TemporaryError(
            f"{where}: the catalog or the store cannot be reached, or is busy ({name}). Run the same command again; it "
            "goes on. If it never worked, check their addresses."
        )
    return StorageError(f"{where}: the library of such tables refused ({name}). A newer one may not.")
