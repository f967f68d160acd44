"""Storage faults as errors of pipeline.errors: final (StorageError) or temporary (TemporaryError).

`storage_errors(url)` turns the errors of the operating system, fsspec, s3fs and botocore into StorageError (no such
bucket, no credentials, no permission: exit 2) and TemporaryError (throttled, 5xx, connection, disk full: exit 75).
Messages carry the place, the error code and a remedy, never the server's own text, which may repeat keys. s3fs
sometimes reports throttling as FileNotFoundError: the whole chain of causes is searched for an HTTP status first.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from pipeline.errors import AlignpotError, StorageError, TemporaryError
from pipeline.shown import shown_path

_TEMPORARY_CODES: Final = frozenset(
    {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException",
     "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "OperationAborted",
     "ConditionalRequestConflict"}
)  # fmt: skip
_TEMPORARY_STATUS: Final = frozenset({408, 409, 429})
_TEMPORARY_ERRNO: Final = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EBUSY", "EAGAIN", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "EMFILE", "ENFILE", "ENETDOWN", "EPIPE",
                 "ENETUNREACH", "EHOSTUNREACH", "EHOSTDOWN", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED")
    if hasattr(errno, name)
)  # fmt: skip
_FULL_ERRNO: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED_ERRNO: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_PATH_ERRNO: Final = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})

_CHECK_KEYS: Final = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for short-lived keys, AWS_SESSION_TOKEN."
_REMEDIES: Final = {
    "InvalidAccessKeyId": f"The access key is not known there. {_CHECK_KEYS}",
    "SignatureDoesNotMatch": f"The secret key does not fit the access key. {_CHECK_KEYS}",
    "ExpiredToken": "The session token has expired. Renew the credentials.",
    "InvalidToken": f"The session token is not valid. {_CHECK_KEYS}",
    "RequestTimeTooSkewed": "The clock of this machine is off. Set it.",
}
_GRANT: Final = "The credentials need s3:ListBucket, s3:GetObject and, to write, s3:PutObject there."


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Raise what storage throws inside the block as StorageError or TemporaryError about `url`; pass on the rest."""
    try:
        yield
    except AlignpotError:
        raise
    except Exception as error:
        fault = translated(error, url)
        if fault is None:
            raise
        raise fault from None


def translated(error: BaseException, url: str) -> AlignpotError | None:
    """The AlignpotError that stands for an error of a storage client; None if it is no storage fault."""
    chain, url = _chain(error), shown_path(url)
    for link in chain:
        fault = _from_hub(link, url) or _from_response(link, url)
        if fault is not None:
            return fault
    return _from_client(error, url) or _from_system(error, url)


def http_status(error: BaseException) -> int | None:
    """The HTTP status that the server answered with, looked for along the chain of causes."""
    return next((status for link in _chain(error) if (status := _answer(link)[1]) is not None), None)


def is_missing(error: FileNotFoundError) -> bool:
    """Whether the object is really not there; not so if its bucket is missing or the server is busy."""
    return isinstance(translated(error, ""), StorageError) and "NoSuchBucket" not in {
        _answer(link)[0] for link in _chain(error)
    }


def _chain(error: BaseException, longest: int = 8) -> list[BaseException]:
    links = [error]
    while len(links) < longest:
        following = links[-1].__cause__ or links[-1].__context__
        if following is None or following in links:
            break
        links.append(following)
    return links


def _answer(error: BaseException) -> tuple[str, int | None]:
    """Error code and HTTP status of a botocore ClientError or alike; ("", None) for other errors."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return "", None
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return str(response.get("Error", {}).get("Code", "")), status if isinstance(status, int) else None


def _from_response(error: BaseException, url: str) -> AlignpotError | None:
    code, status = _answer(error)
    if not code and status is None:
        return None
    what = f"{code or 'no code'}, HTTP {status}"
    if code in _TEMPORARY_CODES or status in _TEMPORARY_STATUS or (status or 0) >= 500:
        return TemporaryError(f"{url}: storage is busy or down ({what}). Run the same command again; it goes on.")
    if code == "NoSuchBucket" or (status == 404 and getattr(error, "operation_name", "") == "HeadBucket"):
        reason = f"{_bucket(url)} does not exist. Create it, or correct the name."
    elif code in _REMEDIES:
        reason = f"refused ({what}). {_REMEDIES[code]}"
    elif status in (401, 403):
        reason = f"access to {_bucket(url)} is denied ({what}). {_GRANT}"
    elif status in (301, 307):
        reason = f"{_bucket(url)} lies in another region ({what}). Set storage.region."
    elif status == 404:
        return None
    else:
        reason = f"the store refused the request ({what}). Check the URL and storage.endpoint_url."
    return StorageError(f"{url}: {reason}")


def _from_hub(error: BaseException, url: str) -> AlignpotError | None:
    """Errors of huggingface_hub and of its HTTP client, known by name: light commands do not import them."""
    library, name = type(error).__module__.partition(".")[0], type(error).__name__
    if library not in ("huggingface_hub", "httpx", "httpx2"):
        return None
    status = getattr(getattr(error, "response", None), "status_code", None)
    if name in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return None  # a FileNotFoundError says it
    if name == "OfflineModeIsEnabled":
        return StorageError(f"{url}: the hub is not asked, as HF_HUB_OFFLINE is set. Unset it, or give a local path.")
    if status is None and library == "huggingface_hub":
        return StorageError(f"{url}: the client of the hub cannot use it ({name}). Check name and revision.")
    if status is None or status in _TEMPORARY_STATUS or status >= 500:
        what = name if status is None else f"HTTP {status}"
        return TemporaryError(
            f"{url}: the hub cannot be reached or is busy ({what}). Run the same command again; it goes on. "
            "If it never worked, check HF_ENDPOINT and the network."
        )
    return StorageError(
        f"{url}: the hub refused ({name}, HTTP {status}). Check name and revision. For a private or gated dataset set "
        "HF_TOKEN, or run `hf auth login`, with a token that may read it, or write to it."
    )


def _from_client(error: BaseException, url: str) -> AlignpotError | None:
    """Errors of the S3 client that come without an answer of the server."""
    if isinstance(error, OSError) and error.errno is not None:
        return None
    import aiohttp
    from botocore import exceptions as boto
    from fsspec.exceptions import FSTimeoutError

    name = type(error).__name__
    refused = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
    if isinstance(error, (*refused, boto.ProfileNotFound, boto.TokenRetrievalError, boto.SSOError)):
        return StorageError(
            f"{url}: no usable credentials for {_bucket(url)} ({name}). Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a profile or a role, or storage.anonymous: true for a public bucket."
        )
    lost = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, aiohttp.ClientError)
    if isinstance(error, (*lost, FSTimeoutError, TimeoutError, ConnectionError)):
        cause = type(error.__cause__ or error).__name__
        return TemporaryError(
            f"{url}: storage cannot be reached ({cause}). Run the same command again; it goes on. "
            "If it never worked, check storage.endpoint_url and the network."
        )
    if isinstance(error, boto.BotoCoreError):
        return StorageError(f"{url}: not usable ({name}). Check the URL and the storage section.")
    return None


def _from_system(error: BaseException, url: str) -> AlignpotError | None:
    if not isinstance(error, OSError):
        return None
    code = errno.errorcode.get(error.errno or 0, type(error).__name__)
    again = "run the same command again; it goes on."
    if error.errno in _FULL_ERRNO:
        return TemporaryError(f"{url}: no space left ({code}). Free some and {again}")
    if error.errno in _TEMPORARY_ERRNO:
        return TemporaryError(f"{url}: storage failed for now ({code}). See to it and {again}")
    if isinstance(error, FileNotFoundError):
        reason = "not there. Correct the path."
    elif isinstance(error, PermissionError) or error.errno in _DENIED_ERRNO:
        reason = f"permission denied ({code}). Grant access, or use another path."
    elif error.errno in _PATH_ERRNO or isinstance(error, FileExistsError):
        reason = f"not usable as a path ({code}). Correct the path."
    else:
        return None
    return StorageError(f"{url}: {reason}")


def _bucket(url: str) -> str:
    scheme, sign, rest = url.rpartition("://")  # the last: in delta://s3://bucket/path there are two
    return f"bucket {rest.partition('/')[0]}" if sign and scheme != "file" else "the place"
