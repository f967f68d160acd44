"""The S3 client: s3fs, with one loop of retries for every request.

botocore would wait half a second and more before it tries again, or slow down the whole client after one busy answer;
s3fs begins with a tenth of a second. A request that stays without a good answer for `max_attempts` fails.
"""

from typing import Any

import s3fs
import s3fs.core
from botocore.exceptions import ConnectionError as NoConnection
from s3fs.core import S3_RETRYABLE_ERRORS

from pipeline.errors import TemporaryError
from pipeline.faults import http_status, translated


class S3FileSystem(s3fs.S3FileSystem):  # type: ignore[misc]
    """`s3fs.S3FileSystem` that makes each request up to `max_attempts` times, here and after pickling."""

    def __init__(self, *, max_attempts: int, config_kwargs: dict[str, Any], **kwargs: Any) -> None:
        once = {"mode": "standard", "total_max_attempts": 1}
        super().__init__(config_kwargs={**config_kwargs, "retries": once}, **kwargs)
        self.retries = max_attempts

    async def _call_s3(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call_s3(*args, **kwargs)
        except (*S3_RETRYABLE_ERRORS, NoConnection) as error:
            # Under another name, lest the loop of s3fs around the reading of a body begin anew.
            raise ConnectionError from error


def _try_again(error: Exception, before: Any = s3fs.core.CUSTOM_ERROR_HANDLER) -> bool:
    """Whether s3fs, which knows a busy store by few of its words, shall repeat a request that failed like this."""
    if isinstance(error, OSError) or http_status(error) == 409:  # s3fs gave up on it; `commit.create` repeats it
        return False
    return isinstance(translated(error, ""), TemporaryError) or bool(before(error))


s3fs.core.set_custom_error_handler(_try_again)
