"""A tokenizer's chat template, with limits on time and length: no template and no row ends or hangs a run.

Templates get messages as TRL's trainers give them: tool calls as objects, and no field that a message does not have.
Templates write their own BOS and EOS, so tokenising adds none.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from pipeline.config import DEFAULT_DATE, Tokens
from pipeline.drops import DropRow, Reason, tell_row_fault
from pipeline.errors import ModelError, is_foreign
from pipeline.models.packing import Int32Array
from pipeline.models.time_limit import limited
from pipeline.shown import shown
from pipeline.sources.turns import message_of

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]

MAX_CHARACTERS: Final = 16 * 2**20
"""Longest text that a template may make of one dialogue."""
LIMIT_S: Final = 10.0
"""Longest time that a template may take for one dialogue."""
SET_REWARD_TEMPLATE: Final = "Set reward.chat_template to a Jinja file."
_SET_TEMPLATE: Final = "Set tokens.chat_template to a Jinja file."
_MOST_TIMEOUTS: Final = 3
_WORDS_SHOWN: Final = 200
_FEWEST_OWN: Final = 8  # characters; fewer are in the template by chance


class ChatTemplate:
    """The chat template of a tokenizer, or one that takes its place.

    Args:
        tokenizer: a transformers tokenizer.
        text: the template; None for the tokenizer's own.
        date: what templates read in place of the clock.
        kwargs: further arguments of the template, for every dialogue.
        remedy: what to do if there is no template.

    Raises a ModelError if there is no template, or it cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        text: str | None,
        date: datetime.date = DEFAULT_DATE,
        *,
        kwargs: Mapping[str, Any] | None = None,
        remedy: str = _SET_TEMPLATE,
    ) -> None:
        check_template(tokenizer, text, remedy=remedy)
        self._tokenizer = tokenizer
        self._kwargs = kwargs or {}
        self._arguments = {"chat_template": text, "strftime_now": date.strftime, "tokenize": False}
        self.owner = owner_of(tokenizer, text)
        self._num_timeouts = 0

    @classmethod
    def of(cls, tokenizer: Any, tokens: Tokens) -> "ChatTemplate":
        """The template that a policy or reference reads."""
        if tokens.template == "none":
            return NoTemplate(tokenizer)
        return cls(tokenizer, tokens.chat_template, tokens.date, kwargs=tokens.template_kwargs)

    def text(
        self,
        messages: Messages,
        tools: str | None = None,
        kwargs: str | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The messages as one text.

        tools: JSON text of the tool schemas that the template is given. kwargs: JSON text of the row's own arguments
        for the template.

        An assistant turn that ends them is an answer already begun if a generation prompt is wanted: it stays open.

        Raises:
            DropRow: it takes too long or becomes too long.
            Exception: whatever the template raises.
        """
        is_begun = add_generation_prompt and bool(messages) and messages[-1]["role"] == "assistant"
        own = {} if kwargs is None else json.loads(kwargs)
        render = partial(
            self._tokenizer.apply_chat_template,
            list(map(message_of, messages[:-1] if is_begun else messages)),
            tools=None if tools is None else json.loads(tools),
            add_generation_prompt=add_generation_prompt,
            **{**self._kwargs, **own, **self._arguments},
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
        return self._tokenised(text, add_special_tokens=False)

    def _tokenised(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        except BaseException as error:
            if not is_foreign(error):
                raise
            raise DropRow(Reason.TOKENIZER_ERROR) from error
        return ids

    def ids(
        self,
        messages: Messages,
        tools: str | None = None,
        kwargs: str | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> Int32Array:
        """Token ids of messages, int32. Arguments and errors as in `text` and `ids_of`."""
        text = self.text(messages, tools, kwargs, add_generation_prompt=add_generation_prompt)
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
            tell_row_fault(cause, where=self.owner, row=row, words=self.words_of(cause))
        self._num_timeouts += reason == Reason.TEMPLATE_TIMEOUT
        if self._num_timeouts >= _MOST_TIMEOUTS:
            raise ModelError(
                f"{self.owner} takes longer than {LIMIT_S:g} s over one dialogue: on {_MOST_TIMEOUTS} rows, and "
                f"it finished none between them. The last is {shown(row)}. Look for a loop without an end."
            )
        return reason

    def refusal(self, dialogues: Sequence[Messages], tools: str | None = None, kwargs: str | None = None) -> str:
        """What the template says in refusing one of these dialogues; else empty."""
        for messages in dialogues:
            try:
                self.text(messages, tools, kwargs)
            except Exception as error:  # noqa: BLE001 - a template may raise anything
                return self.words_of(error)
        return ""

    def words_of(self, error: BaseException) -> str:
        """What the template itself says in an error that it raises. Text that is not the template's own is left out."""
        said = str(error) if isinstance(error, TemplateError) else ""
        template = str(self._arguments["chat_template"] or self._tokenizer.chat_template)
        own = next((said[:end] for end in range(min(len(said), _WORDS_SHOWN), 0, -1) if said[:end] in template), "")
        if len(own) < _FEWEST_OWN:
            return ""
        return own if own == said else f"{own.rstrip()} ..."


class NoTemplate(ChatTemplate):
    """Takes the text of a prompt and its answer as it is, one after the other: it may be templated already.

    Nothing is added but the special tokens with which the tokenizer begins every text, unless they are there.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.owner = f"The tokenizer of {tokenizer.name_or_path}"
        self._num_timeouts = 0

    def text(
        self,
        messages: Messages,
        tools: str | None = None,  # noqa: ARG002 - the text holds them already
        kwargs: str | None = None,  # noqa: ARG002
        *,
        add_generation_prompt: bool = False,  # noqa: ARG002
    ) -> str:
        """The texts of a user turn and, if there is one, an assistant turn. Raises a DropRow for other turns."""
        if [turn["role"] for turn in messages] not in (["user"], ["user", "assistant"]):
            raise DropRow(Reason.SEVERAL_TURNS)
        return "".join(turn["content"] or "" for turn in messages)

    def ids_of(self, text: str) -> list[int]:
        """Token ids of a text. Raises as for a template."""
        begins = self._tokenizer.bos_token
        return self._tokenised(text, add_special_tokens=not (begins and text.startswith(begins)))

    def words_of(self, error: BaseException) -> str:  # noqa: ARG002
        """A text says nothing."""
        return ""


def check_template(tokenizer: Any, text: str | None, *, remedy: str = _SET_TEMPLATE) -> None:
    """Check that there is a chat template, and that it can be compiled: `text`, or else the tokenizer's own.

    Raises a ModelError if there is none, or it has an error.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    own = tokenizer.chat_template if text is None else text
    if not own:
        raise ModelError(f"The tokenizer of {tokenizer.name_or_path} has no chat template. {remedy}")
    owner, mend = owner_of(tokenizer, text), remedy if text is None else "Correct it."
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


def owner_of(tokenizer: Any, text: str | None) -> str:
    """Whose template it is, for messages."""
    return f"The chat template of {tokenizer.name_or_path}" if text is None else "The template tokens.chat_template"
