"""What an HTTP reply means for its request: an answer, another try, a refusal of what is in it, or a wrong config."""

import email.utils
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pipeline.errors import ConfigError

_OF_THE_REQUEST: Final = frozenset({400, 413, 422})
_TRY_AGAIN: Final = frozenset({408, 424, 429})  # 424 is what TEI says when its own model has failed
_AWAY: Final = frozenset({429, 502, 503, 504})  # says that the service is busy or away, and nothing about the request
_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,60}")


class Trouble(Exception):  # noqa: N818 - control flow
    """A try that failed for now.

    is_away: nothing speaks for the request as the cause. is_form: the answer is whole, but of another form than wanted.
    """

    def __init__(self, words: str, *, is_away: bool = False, is_form: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(words)
        self.is_away, self.is_form, self.pause_s = is_away, is_form, pause_s


class Refused(Exception):  # noqa: N818 - control flow
    """The service refuses what is in a request."""


def read_reply(status: int, headers: Mapping[str, str], content: bytes, url: str, remedy: Callable[[], str]) -> Any:
    """The answer as parsed JSON.

    Raises Trouble if the request may be sent again, Refused if the service does not take what is in it, and a
    ConfigError, with the remedy, for everything else.
    """
    if status == 200:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Trouble("an answer that is cut off or no JSON") from None
    words = f"HTTP {status}{_error_names(content)}"
    if status in _TRY_AGAIN or status >= 500:
        raise Trouble(words, is_away=status in _AWAY, pause_s=_retry_after(headers))
    if status in _OF_THE_REQUEST:
        raise Refused(words)
    raise ConfigError(f"{url} answers {words}. {remedy()}")


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a service asks to wait: a number of them or a date; 0 if it does not."""
    given = headers.get("Retry-After", "").strip()
    if given.isdecimal():
        return float(given)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _error_names(content: bytes) -> str:
    """Type, parameter and code of an error in its usual form. The text of its message may quote a row."""
    try:
        given = json.loads(content)
        error = given["error"] if isinstance(given.get("error"), dict) else given
        names = [str(error[name]) for name in ("type", "error_type", "param", "code") if error.get(name)]
    except (ValueError, AttributeError, RecursionError):
        return ""
    found = [name for name in names if _NAME.fullmatch(name)]
    return f" ({', '.join(found)})" if found else ""
