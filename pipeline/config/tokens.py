"""The tokens section: how messages become tokens, the same way for policy and reference."""

import datetime
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Section
from pipeline.config.text import read_text

DEFAULT_DATE: Final = datetime.date(2025, 1, 1)
_TEMPLATE_BYTES: Final = 1 << 20


class Tokens(Section):
    """Templating and truncation, the same for policy and reference."""

    preset: Literal["trl", "paper"] = "trl"
    """`trl`: template and response mask as in TRL. `paper`: as in the code of the paper's authors, truncation
    included."""
    max_length: int = Field(default=2048, ge=2)
    """Most tokens of prompt and response together."""
    max_prompt_length: int = Field(default=1800, ge=1)
    """Most tokens of a prompt. Read by preset `paper` only, and in the fingerprint only there."""
    truncation: Literal["keep_start", "keep_end"] = "keep_start"
    """Which end of a pair is kept where it is longer than `max_length`. Preset `paper` has its own rule: there the key
    is neither read nor part of the fingerprint."""
    chat_template: str | None = None
    """Jinja file to use instead of the tokenizer's own template, at most 1 MiB. Default: the tokenizer's. The file is
    read with the config, so workers do not need it."""
    date: datetime.date = DEFAULT_DATE
    """Day given to chat templates that print today's date, that of the reward model included. Scores then do not depend
    on the day of the run."""

    @field_validator("chat_template")
    @classmethod
    def _template_text(cls, value: str | None) -> str | None:
        if value is None or "{" in value:
            return value
        try:
            return read_text(value, most_bytes=_TEMPLATE_BYTES)
        except OSError as error:
            raise ValueError(f"the file cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"the file cannot be used: {error}") from None

    @model_validator(mode="after")
    def _paper_lengths(self) -> "Tokens":
        if self.preset == "paper" and self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length with preset: paper")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Without the key that the preset does not read."""
        unread = "max_prompt_length" if self.preset == "trl" else "truncation"
        return {name: value for name, value in super().fingerprint().items() if name != unread}
