"""A chat template in the config: the name of a Jinja file, whose text takes its place when the config is read."""

from typing import Annotated, Final

from pydantic import AfterValidator

from pipeline.config.load import read_text

_TEMPLATE_BYTES: Final = 1 << 20


def _template_text(value: str) -> str:
    if "{" in value or "\0" in value:  # every section refuses a null character
        return value
    try:
        return read_text(value, most_bytes=_TEMPLATE_BYTES)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"the file cannot be used: {error}") from None


JinjaFile = Annotated[str, AfterValidator(_template_text)]
"""Text of a template; a value without a brace is the name of a file that holds it, at most 1 MiB."""
