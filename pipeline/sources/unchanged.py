"""Checks before and after each read that a source file is still the one that was planned.

Asking storage for the file's state is cheap. The same state means the same content. Another state may mean anything,
from chmod to another file of that name: then the content is read and compared.
"""

import functools
import hashlib
from typing import Any, Final

from pipeline.errors import IntegrityError

_CHUNK_BYTES: Final = 1 << 20


class Moved(Exception):  # noqa: N818 - seen by read_rows alone, which looks again
    """The file's state changed between two looks at it."""


def state_of(fs: Any, path: str) -> str:
    """What storage says of a file. Two contents never have the same state; one content may have several."""
    return str(fs.ukey(path))


def digest_of(fs: Any, path: str) -> str:
    """A name for a file's content: `etag:`, `blake2b:` or, for other storage, `checksum:`."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if protocols & {"file", "local"}:
        content = hashlib.blake2b(digest_size=16)
        with fs.open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                content.update(chunk)
        return f"blake2b:{content.hexdigest()}"
    etag = fs.info(path).get("ETag")
    if etag:
        return _of_etag(etag)
    try:
        return f"checksum:{fs.checksum(path)}"
    except (NotImplementedError, AttributeError):
        return f"checksum:{fs.ukey(path)}"


def check_planned(fs: Any, path: str, digest: str, states: tuple[str, str], *, shown: str) -> None:
    """Check that a file still holds the content of this digest.

    `states` are those of the file when the content was planned, and now. `shown` names the file in messages.

    Raises:
        IntegrityError: the content is another one.
        Moved: the file changed while it was looked at.
    """
    planned, now = states
    if now != planned and _digest_in_state(fs, path, now) != digest:
        raise IntegrityError(
            f"source file {shown} was replaced since the run was planned. Its content differs, and no row of it was "
            "written. Put the old file back and run again, or write to another output."
        )


def is_pinned(file: Any, digest: str) -> bool:
    """Whether all reads of an open file are of one object, as on S3, where each carries `If-Match`.

    Raises:
        Moved: it is not the object of this digest.
    """
    etag = (getattr(file, "details", None) or {}).get("ETag")
    if etag is None:
        return False
    if _of_etag(etag) != digest:
        raise Moved
    return True


@functools.lru_cache(maxsize=4096)
def _digest_in_state(fs: Any, path: str, state: str) -> str:
    digest = digest_of(fs, path)
    if state_of(fs, path) != state:
        raise Moved
    return digest


def _of_etag(etag: str) -> str:
    return f"etag:{etag.strip(chr(34))}"
