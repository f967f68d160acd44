"""A client of HTTP services that answer JSON with JSON: patient while a service fails for now, quick where it refuses.

`Client.ask` sends many requests at once and gives each answer as soon as it is there, so that it can be kept. What
happens to a request:

- 429, 5xx, a lost connection, a time-out, an answer that is cut off or not what was wanted: it is sent again, after a
  random pause that doubles from try to try, or after what `Retry-After` asks for. A URL that fails on request after
  request is left alone for a while. Other URLs go on.
- 400, 413, 422: the service refuses what is in it. It is `Failed`, and is not sent again.
- Any other status: the config is wrong. A ConfigError ends the run.
- A request that fails again and again, while the service still answers the last good one, is `Failed` too.
- After `deadline_s` a TemporaryError ends the run with exit code 75, and the same command goes on.

Messages name the URL, the status and the names that a service gives to its error, never text of a request or answer.
"""

import asyncio
import email.utils
import json
import logging
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.errors import ConfigError, TemporaryError
from pipeline.shown import shown

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

_OF_THE_REQUEST: Final = frozenset({400, 413, 422})
_TRY_AGAIN: Final = frozenset({408, 424, 429})  # 424 is what TEI says when its own model has failed
_AWAY: Final = frozenset({429, 502, 503, 504})  # says that the service is busy or away, and nothing about the request
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_CONNECT_S: Final = 10.0
_FAILURES_TO_REST: Final = 3
_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,60}")
_DONE: Final = object()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where requests go, and how patiently.

    Attributes:
        section: its section of the config, for messages.
        urls: base URLs that serve the same model. Each request goes to the one with the fewest in flight.
        key_variable: environment variable with the key, which is sent as `Authorization: Bearer KEY`.
        concurrency: most requests in flight.
        timeout_s: seconds that one request may take.
        deadline_s: seconds that one call of `ask` may take.
        tries: how often a request is sent that fails while others are answered; not counted while the service is away.
    """

    section: str
    urls: Sequence[str]
    key_variable: str | None = None
    concurrency: int = 64
    timeout_s: float = 60.0
    deadline_s: float = 1800.0
    tries: int = 8


@dataclass(frozen=True, slots=True)
class Failed:
    """What is in a request keeps it from an answer. `words` say how, without text of it."""

    words: str


class BadAnswer(Exception):  # noqa: N818 - control flow, never seen by a user
    """An answer is not what was wanted. Its message holds no text of the answer."""


class _Trouble(Exception):  # noqa: N818 - control flow
    """A try that failed for now.

    is_away: nothing speaks for the request as the cause. is_form: the answer is whole, but of another form than wanted.
    """

    def __init__(self, words: str, *, is_away: bool = False, is_form: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(words)
        self.is_away, self.is_form, self.pause_s = is_away, is_form, pause_s


class _RefusedError(Exception):
    """The service refuses what is in a request."""


@dataclass(slots=True)
class _Host:
    """One base URL. failures: one after another; rests_until: on the loop's clock."""

    url: str
    proxy: str | None
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0

    def failed(self, now: float, pause_s: float) -> None:
        """Rest for as long as the service asks for, or after some failures in a row for longer and longer."""
        if now >= self.rests_until:
            self.failures += 1
            if self.failures >= _FAILURES_TO_REST:
                pause_s = max(pause_s, _pause(self.failures - _FAILURES_TO_REST))
        self.rests_until = max(self.rests_until, now + pause_s)


class Client:
    """Sends requests to a service, from one thread of its own that keeps connections open.

    Raises a ConfigError if the key is to come from a variable that is not set.
    """

    def __init__(self, service: Service) -> None:
        import aiohttp

        self._aiohttp = aiohttp  # imported here, as that takes a second, which is no time of the first request
        self._service = service
        self._headers = headers_of(service)
        self._hosts = [_Host(url.rstrip("/"), _proxy_of(url)) for url in service.urls]
        self._session: aiohttp.ClientSession | None = None
        self._good: tuple[str, Any] | None = None  # the last path and body that were answered
        self._told: set[str] = set()
        self._last_trouble = "no answer"
        self.num_sent = 0
        """Requests sent so far, each try counted."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="alignpot-http", daemon=True)
        self._thread.start()

    def ask(self, path: str, bodies: Sequence[Any], read: Callable[[int, Any], T]) -> Iterator[tuple[int, T | Failed]]:
        """Send a request with each body. Gives its index and what `read` makes of the answer, in order of arrival.

        path: is put after a base URL. body: JSON-ready; None sends a GET. read: takes the index and the answer as
        parsed JSON; may raise BadAnswer, or a LookupError, TypeError, ValueError or AttributeError, to have the request
        sent again. It runs in the thread of the client.

        Raises:
            ConfigError: the service refuses requests as such: key, path or model are wrong.
            TemporaryError: it gave no answers in time. Those that it gave came out before.
        """
        found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(self._ask_all(path, bodies, read, found.put), self._loop)
        work.add_done_callback(lambda _: found.put(_DONE))
        try:
            while (each := found.get()) is not _DONE:
                yield each
            work.result()
        finally:
            work.cancel()

    def close(self) -> None:
        """Close connections and end the thread."""
        if self._loop.is_closed():
            return
        _log.info("%s: %d requests were sent", self._service.section, self.num_sent)

        async def end() -> None:
            if self._session is not None:
                await self._session.close()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _ask_all(
        self, path: str, bodies: Sequence[Any], read: Callable[[int, Any], T], tell: Callable[[Any], None]
    ) -> None:
        waiting, num_answered = iter(enumerate(bodies)), 0

        async def work() -> None:
            nonlocal num_answered
            for index, body in waiting:
                answer = await self._ask(path, body, partial(read, index))
                num_answered += 1
                tell((index, answer))

        try:
            async with asyncio.timeout(self._service.deadline_s), asyncio.TaskGroup() as group:
                for _ in range(min(self._service.concurrency, len(bodies))):
                    group.create_task(work())
        except TimeoutError:
            section, limit_s = self._service.section, self._service.deadline_s
            raise TemporaryError(
                f"{section}.urls: {len(bodies) - num_answered} of {len(bodies)} requests have no answer after "
                f"{section}.deadline_s, {limit_s:g} s. The last trouble was {self._last_trouble}. See to the service, "
                "and run the same command again; it goes on."
            ) from None
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _ask(self, path: str, body: Any, read: Callable[[Any], T]) -> T | Failed:
        num_tries = num_blamed = 0
        while True:
            host = await self._free_host()
            try:
                answer = await self._exchange(host, path, body)
                try:
                    found = read(answer)
                except BadAnswer as error:
                    raise _Trouble(str(error), is_form=True) from None
                except (LookupError, TypeError, ValueError, AttributeError):
                    raise _Trouble("an answer of another form than wanted", is_form=True) from None
            except _RefusedError as error:
                host.failures = 0
                return Failed(f"{host.url}{path} refused it with {error}")
            except _Trouble as trouble:
                self._tell(f"{trouble} from {host.url}{path}")
                host.failed(self._loop.time(), trouble.pause_s)
                num_blamed += not trouble.is_away
                if num_blamed < self._service.tries or trouble.is_away:
                    pass
                elif self._good is None and trouble.is_form:
                    raise ConfigError(
                        f"{host.url}{path} gives {trouble}, each time. Check the kind of the server, and {host.url}."
                    ) from None
                elif await self._still_works():
                    return Failed(f"{host.url}{path} gave {trouble}, and at {num_blamed - 1} tries before failed too")
            else:
                host.failures = 0
                self._good = path, body
                return found
            await asyncio.sleep(_pause(num_tries))
            num_tries += 1

    async def _free_host(self) -> _Host:
        """The URL with the fewest requests in flight, of those that do not rest."""
        while True:
            now = self._loop.time()
            free = [host for host in self._hosts if host.rests_until <= now]
            if free:
                return min(free, key=lambda host: host.in_flight)
            await asyncio.sleep(min(host.rests_until for host in self._hosts) - now)

    async def _still_works(self) -> bool:
        """Whether the last request that was answered is answered again, so that another one is itself to blame."""
        if self._good is None:
            return False
        try:
            await self._exchange(await self._free_host(), *self._good)
        except (_Trouble, _RefusedError):
            return False
        return True

    async def _exchange(self, host: _Host, path: str, body: Any) -> Any:
        """The answer as parsed JSON. Raises _Trouble, _RefusedError or a ConfigError."""
        method = "GET" if body is None else "POST"
        host.in_flight += 1
        self.num_sent += 1
        try:
            async with self._open_session().request(
                method, host.url + path, json=body, proxy=host.proxy, allow_redirects=False
            ) as response:
                status, headers, content = response.status, response.headers, await response.read()
        except (self._aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            is_away = isinstance(error, (self._aiohttp.ClientConnectorError, self._aiohttp.ConnectionTimeoutError))
            raise _Trouble(type(error).__name__, is_away=is_away) from None
        finally:
            host.in_flight -= 1
        if status == 200:
            try:
                return json.loads(content)
            except (ValueError, RecursionError):
                raise _Trouble("an answer that is cut off or no JSON") from None
        words = f"HTTP {status}{_error_names(content)}"
        if status in _TRY_AGAIN or status >= 500:
            raise _Trouble(words, is_away=status in _AWAY, pause_s=_retry_after(headers))
        if status in _OF_THE_REQUEST:
            raise _RefusedError(words)
        raise ConfigError(f"{host.url}{path} answers {words}. {self._remedy(status)}")

    def _open_session(self) -> "aiohttp.ClientSession":
        if self._session is None:
            self._session = self._aiohttp.ClientSession(
                connector=self._aiohttp.TCPConnector(limit=0),
                timeout=self._aiohttp.ClientTimeout(total=self._service.timeout_s, sock_connect=_CONNECT_S),
                headers=self._headers,
                cookie_jar=self._aiohttp.DummyCookieJar(),
            )
        return self._session

    def _remedy(self, status: int) -> str:
        section, variable = self._service.section, self._service.key_variable
        if status in (401, 403):
            key = "is not one that it takes" if variable else f"is missing: set {section}.key_variable"
            return f"The key {'in ' + variable + ' ' if variable else ''}{key}."
        if status in (404, 405):
            return f"Check {section}.urls, the name of the model, and whether the server has this path."
        return f"Check {section}.urls."

    def _tell(self, trouble: str) -> None:
        """Log a kind of trouble once."""
        self._last_trouble = trouble
        if trouble not in self._told:
            self._told.add(trouble)
            _log.warning("%s: %s; such requests are sent again", self._service.section, shown(trouble, 300))


def headers_of(service: Service) -> dict[str, str]:
    """What goes with each request: the key. Raises a ConfigError if it is to come from a variable that is not set."""
    if service.key_variable is None:
        return {}
    key = os.environ.get(service.key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"{service.section}.key_variable: {service.key_variable} is not set here. Set it to the key of the "
            "service, on every node that scores."
        )
    return {"Authorization": f"Bearer {key}"}


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _pause(num_before: int) -> float:
    """A random pause ("full jitter") before the next try."""
    return random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(num_before, 16)))  # noqa: S311


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
