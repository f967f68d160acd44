"""The base of every part of the config, and a check that several parts share."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

SECRET_NAME = re.compile(r"token$|secret|password|api_?key|credential", re.IGNORECASE)
"""What an argument is called that may hold a secret."""
CREDENTIALS_IN_URL = re.compile(r"^[a-z0-9+.-]+://[^/@]*:[^/@]*@", re.IGNORECASE)


class Section(BaseModel):
    """A part of the config: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def checked_url(url: str | None) -> str | None:
    """The path or URL, if alignpot may use it.

    Raises:
        ValueError: it carries credentials, or is no storage.
    """
    if url is None:
        return None
    if CREDENTIALS_IN_URL.match(url):
        raise ValueError("must not carry credentials; use the AWS variables or an instance role")
    if url.startswith(("http://", "https://")):
        raise ValueError("must be a local path or an object-store URL such as s3://bucket/prefix")
    return url


def without_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an engine, none of whose names is that of a secret.

    Raises:
        ValueError: one is.
    """
    secret = sorted(name for name in arguments if SECRET_NAME.search(name))
    if secret:
        raise ValueError(f"must not carry credentials ({', '.join(secret)}); use environment variables")
    return arguments
