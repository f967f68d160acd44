"""The S3 client: s3fs, with retries of our own for every request.

botocore waits half a second or more before a retry, or slows down the whole client after one busy answer; s3fs
recognises only some answers of a busy store. s3fs still asks again if a body was cut short.
"""

import asyncio
import random
from typing import Any, Final

import s3fs
from botocore.exceptions import ClientError
from botocore.exceptions import ConnectionError as NoConnection
from fsspec.asyn import sync_wrapper
from s3fs.core import S3_RETRYABLE_ERRORS
from s3fs.errors import translate_boto_error

from pipeline.errors import TemporaryError
from pipeline.faults import http_status, translated

_FIRST_WAIT_S: Final = 0.03
_GROWTH: Final = 2.5
_LONGEST_WAIT_S: Final = 20.0


class S3FileSystem(s3fs.S3FileSystem):  # type: ignore[misc]
    """`s3fs.S3FileSystem` that makes each request up to `max_attempts` times; 10 outlast an outage of 25 to 50 s."""

    def __init__(self, *, max_attempts: int, config_kwargs: dict[str, Any], **kwargs: Any) -> None:
        once = {"mode": "standard", "total_max_attempts": 1}
        super().__init__(config_kwargs={**config_kwargs, "retries": once}, **kwargs)
        self.retries = max_attempts

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        request = getattr(await self.set_session(), method)
        arguments = self._get_s3_method_kwargs(request, *akwarglist, **kwargs)
        failure: Exception
        for attempt in range(self.retries):
            if attempt:
                wait = min(_FIRST_WAIT_S * _GROWTH ** (attempt - 1), _LONGEST_WAIT_S)
                await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311
            try:
                return await request(**arguments)
            except ClientError as error:
                failure = translate_boto_error(error)
            except (*S3_RETRYABLE_ERRORS, NoConnection) as error:
                # Of another class, so that the loop of s3fs that reads a body does not retry as well.
                failure = ConnectionError()
                failure.__cause__ = error
            # After a 409 `commit.create` asks again.
            if http_status(failure) == 409 or not isinstance(translated(failure, ""), TemporaryError):
                break
        raise failure

    call_s3 = sync_wrapper(_call_s3)
