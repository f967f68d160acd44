"""How the libraries of tables are reached: locations, options of stores, catalogs, and their errors as ours."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

from pipeline import config
from pipeline.data.place import Place
from pipeline.errors import AlignpotError, ConfigError, StorageError, TemporaryError
from pipeline.faults import translated
from pipeline.shown import shown, shown_path

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


def load_catalog(name: str, storage: config.Storage) -> Any:
    """The catalog that pyiceberg knows by this name. What its description leaves open, the storage section tells.

    Raises:
        ConfigError: it is not described, or not well.
    """
    from pyiceberg import catalog
    from pyiceberg.utils.config import Config

    described: dict[str, Any] = Config().get_catalog_config(name) or {}
    given = {"s3.endpoint": storage.endpoint_url, "s3.region": storage.region}
    if storage.anonymous and not {"s3.access-key-id", "client.access-key-id"} & {*described}:
        given["s3.anonymous"] = "true"
    try:
        return catalog.load_catalog(name, **{key: value for key, value in given.items() if value} | described)
    except ValueError:
        raise ConfigError(
            f"pyiceberg does not know how to reach the catalog {shown(name)}. Describe it in ~/.pyiceberg.yaml "
            f"(`catalog: {{{shown(name)}: {{uri: ...}}}}`), or by variables such as "
            f"PYICEBERG_CATALOG__{shown(name.upper())}__URI."
        ) from None


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
    is_storage = isinstance(error, OSError)
    of_library = isinstance(error, OSError) and error.errno is None  # then only the text tells what is wrong
    if isinstance(error, ImportError):
        found: AlignpotError = ConfigError(
            f"{where}: a package is not installed ({error.name}). Run: pip install 'alignpot[tables]'"
        )
    elif name == "NotInstalledError":
        found = ConfigError(f"{where}: its catalog needs another package. {shown_path(error)}")
    elif name in _MISSING:
        found = StorageError(f"{where}: the catalog has no such table ({name}). Correct the name, or create it.")
    elif name in _DENIED or (of_library and _DENIED_TEXT.search(str(error))):
        found = StorageError(f"{where}: access is denied ({name}). Check the credentials of catalog and store.")
    elif (known := translated(error, where)) is not None:
        found = known
    elif name in _BUSY or is_storage:
        found = TemporaryError(
            f"{where}: the catalog or the store cannot be reached, or is busy ({name}). Run the same command again; it "
            "goes on. If it never worked, check their addresses."
        )
    else:
        found = StorageError(f"{where}: the library of such tables refuses it ({name}). A newer one may not.")
    return found
