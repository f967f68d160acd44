"""A tokenizer's chat template, with limits on time and length: no template and no row ends or hangs a run.

Templates write their own BOS and EOS, so tokenising adds none.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from jinja2 import TemplateSyntaxError

from pipeline.config import DEFAULT_DATE
from pipeline.drops import DropRow, Reason, tell_row_fault
from pipeline.errors import ModelError, is_foreign
from pipeline.models.packing import Int32Array
from pipeline.models.time_limit import limited
from pipeline.shown import shown

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]

MAX_CHARACTERS: Final = 16 * 2**20
"""Longest text that a template may make of one dialogue."""
LIMIT_S: Final = 10.0
"""Longest time that a template may take for one dialogue."""
SAVE_TEMPLATE: Final = "Save one with the reward model's tokenizer."
_SET_TEMPLATE: Final = "Set tokens.chat_template to a Jinja file."
_MOST_TIMEOUTS: Final = 3


class ChatTemplate:
    """The chat template of a tokenizer, or one that takes its place.

    Args:
        tokenizer: a transformers tokenizer.
        text: the template; None for the tokenizer's own.
        date: what templates read in place of the clock.
        remedy: what to do if there is no template.

    Raises a ModelError if there is no template, or it cannot be used.
    """

    def __init__(
        self, tokenizer: Any, text: str | None, date: datetime.date = DEFAULT_DATE, *, remedy: str = _SET_TEMPLATE
    ) -> None:
        check_template(tokenizer, text, remedy=remedy)
        self._tokenizer = tokenizer
        self._arguments = {"chat_template": text, "strftime_now": date.strftime, "tokenize": False}
        self._owner = _owner(tokenizer, text)
        self._num_timeouts = 0

    def text(self, messages: Messages, tools: str | None = None, *, add_generation_prompt: bool = False) -> str:
        """The messages as one text. `tools` is the JSON text of the tool schemas that the template is given.

        An assistant turn that ends them is an answer already begun if a generation prompt is wanted: it stays open.

        Raises:
            DropRow: it takes too long or becomes too long.
            Exception: whatever the template raises.
        """
        is_begun = add_generation_prompt and bool(messages) and messages[-1]["role"] == "assistant"
        render = partial(
            self._tokenizer.apply_chat_template,
            [dict(message) for message in (messages[:-1] if is_begun else messages)],
            tools=None if tools is None else json.loads(tools),
            add_generation_prompt=add_generation_prompt,
            **self._arguments,
        )
        try:
            text = str(limited(render, LIMIT_S)) + (messages[-1]["content"] if is_begun else "")
        except TimeoutError:
            raise DropRow(Reason.TEMPLATE_TIMEOUT) from None
        if len(text) > MAX_CHARACTERS:
            raise DropRow(Reason.TEMPLATE_OUTPUT_TOO_LONG)
        return text

    def ids_of(self, text: str) -> list[int]:
        """Token ids of a text, without added special tokens. Raises a DropRow if the tokenizer fails on it."""
        try:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        except BaseException as error:
            if not is_foreign(error):
                raise
            raise DropRow(Reason.TOKENIZER_ERROR) from error
        return ids

    def ids(self, messages: Messages, tools: str | None = None, *, add_generation_prompt: bool = False) -> Int32Array:
        """Token ids of messages, int32. Arguments and errors as in `text` and `ids_of`."""
        text = self.text(messages, tools, add_generation_prompt=add_generation_prompt)
        return np.asarray(self.ids_of(text), dtype=np.int32)

    def outcome(self, make: Callable[[], T], row: str) -> T | Reason:
        """What `make` makes of the row with id `row`, or the reason why it fails.

        Raises a ModelError if the template took too long on several rows and finished none between them.
        """
        cause: BaseException | None
        try:
            made = make()
        except DropRow as error:
            reason, cause = error.reason, error.__cause__
        except BaseException as error:
            if not is_foreign(error):
                raise
            reason, cause = Reason.TEMPLATE_ERROR, error
        else:
            self._num_timeouts = 0
            return made
        if cause is not None:
            tell_row_fault(cause, where=self._owner, row=row)
        self._num_timeouts += reason == Reason.TEMPLATE_TIMEOUT
        if self._num_timeouts >= _MOST_TIMEOUTS:
            raise ModelError(
                f"{self._owner} takes longer than {LIMIT_S:g} s over one dialogue: on {_MOST_TIMEOUTS} rows, and "
                f"it finished none between them. The last is {shown(row)}. Look for a loop without an end."
            )
        return reason


def check_template(tokenizer: Any, text: str | None, *, remedy: str = _SET_TEMPLATE) -> None:
    """Check that there is a chat template, and that it can be compiled: `text`, or else the tokenizer's own.

    Raises a ModelError if there is none, or it has an error.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    own = tokenizer.chat_template if text is None else text
    if not own:
        raise ModelError(f"The tokenizer of {tokenizer.name_or_path} has no chat template. {remedy}")
    owner, mend = _owner(tokenizer, text), remedy if text is None else "Correct it."
    named = own if isinstance(own, dict) else {"default": own}
    if "default" not in named:
        raise ModelError(f"{owner} is several, {sorted(named)}, and none of them is the default. {mend}")
    for name in ("default", "tool_use"):
        try:
            render_jinja_template([], chat_template=named.get(name, ""))
        except BaseException as error:
            if not is_foreign(error):
                raise
            why = type(error).__name__
            if isinstance(error, TemplateSyntaxError):
                why = f"line {error.lineno}: {str(error.message).rstrip('.')}"
            which = owner if name == "default" else f"{owner} ({name})"
            raise ModelError(f"{which} is no Jinja template that can be used: {shown(why, 200)}. {mend}") from None


def _owner(tokenizer: Any, text: str | None) -> str:
    return f"The chat template of {tokenizer.name_or_path}" if text is None else "The template tokens.chat_template"
