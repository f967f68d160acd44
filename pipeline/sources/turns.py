"""From the values of a row to checked turns: the rules that every format shares.

A pair is kept if the prompt holds a user turn with text and ends with a user or tool turn, and each completion
starts and ends with an assistant turn, holds no system turn, and ends with text or tool calls. So a completion may be
a whole conversation. System turns may stand anywhere in a prompt and may be empty. Text is taken as it is; only white
space alone counts as empty.

A turn keeps the fields of schema.MESSAGE_FIELDS that it has. Null fields and empty lists of tool calls are left out,
for Arrow and `datasets` fill them in. Images, audio and video are more than a text model reads: such a row is dropped,
wherever they stand.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pipeline.drops import DropRow, Reason
from pipeline.schema import (
    CHOSEN,
    MESSAGE_FIELDS,
    PROMPT,
    REASONING,
    REJECTED,
    RESERVED_KWARGS,
    TEMPLATE_KWARGS,
    TOOL_CALLS,
    TOOLS,
)
from pipeline.sources.columns import Row
from pipeline.sources.rows import MEDIA, PLAIN_KEYS, PROMPT_TEXTS, SYSTEM_TEXTS, PairRow, Turn

Message = Mapping[str, Any]
SYSTEM_ROLES: Final = frozenset({"system", "developer"})
ROLES: Final = SYSTEM_ROLES | {"user", "assistant", "tool"}

# Half of what Python's stack has room for: the outcome must not depend on how deep the reader's own calls are.
_MAX_DEPTH: Final = 500

BEYOND_TEXT: Final = (*MEDIA, "function_call")
"""Keys of a message that no template for text renders. Function calls are an older form of tool calls."""


def text_of(value: Any) -> str:
    """The value as text that can be written as UTF-8, or DropRow."""
    if value is None:
        raise DropRow(Reason.NULL_FIELD)
    if not isinstance(value, str):
        raise DropRow(Reason.WRONG_TYPE)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise DropRow(Reason.UNDECODABLE_TEXT) from None
    return value


def id_of(value: Any) -> str:
    """The id that a row gives itself, or DropRow."""
    if value is None or value == "":
        raise DropRow(Reason.NULL_ID)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DropRow(Reason.ID_TYPE)
    return text_of(str(value))


def turns_of(value: Any) -> list[Turn]:
    """The messages of a list, or of a single message object, as turns, or DropRow."""
    if value is None:
        raise DropRow(Reason.NULL_FIELD)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise DropRow(Reason.WRONG_TYPE)
    return [_turn(item) for item in value]


def message_of(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as templates and trainers read it: `content` may be null, other fields are there if they have a value."""
    fields = {name: value for name, value in turn.items() if value is not None}
    message: dict[str, Any] = {"role": fields.pop("role", None), "content": fields.pop("content", None), **fields}
    if TOOL_CALLS in message:
        message[TOOL_CALLS] = json.loads(message[TOOL_CALLS])
    return message


def completion_of(value: Any) -> list[Turn]:
    """Turns of a completion that is given as messages or as text, which becomes one assistant turn."""
    return [{"role": "assistant", "content": text_of(value)}] if isinstance(value, str) else turns_of(value)


def user_turn(text: str) -> Turn:
    """A user turn with this content."""
    return {"role": "user", "content": text}


def prompt_from_texts(row: Row) -> list[Turn]:
    """A system turn, where the row has one, and a user turn from the row's prompt text.

    `input` beside `instruction` is its second part, joined by a line break, as in the Alpaca layout.
    """
    text = text_of(next((row[name] for name in PROMPT_TEXTS if row.get(name) is not None), None))
    if row.get(PROMPT) is None and row.get("instruction") is not None and row.get("input"):
        text = f"{text}\n{text_of(row['input'])}"
    return [*_system_turn(row), user_turn(text)]


def without_last_answers(dialogue: Sequence[Turn]) -> list[Turn]:
    """The dialogue without the assistant turns that it ends with."""
    turns = list(dialogue)
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return turns


def split_dialogues(chosen: list[Turn], rejected: list[Turn]) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """Prompt and the two completions of two full dialogues.

    The prompt is their longest common prefix of turns, without the assistant turns at its end.
    """
    if not chosen or not rejected:
        raise DropRow(Reason.EMPTY_RESPONSE)
    if chosen == rejected:
        raise DropRow(Reason.IDENTICAL_RESPONSES)
    shorter = min(len(chosen), len(rejected))
    num_common = next((index for index in range(shorter) if chosen[index] != rejected[index]), shorter)
    prompt = without_last_answers(chosen[:num_common])
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def any_pair(row: Row) -> PairRow:
    """The pair of a row whose prompt, chosen and rejected may each be text or messages.

    Full dialogues win over a prompt text: they hold the system turn and the history, which the text lacks. If they hold
    the answers only, the text is the prompt.
    """
    chosen, rejected = completion_of(row.get(CHOSEN)), completion_of(row.get(REJECTED))
    prompt = row.get(PROMPT)
    if isinstance(prompt, (list, Mapping)):
        turns = turns_of(prompt)
        # The completions may or may not repeat the prompt.
        chosen, rejected = (
            side[len(turns) :] if turns and side[: len(turns)] == turns else side for side in (chosen, rejected)
        )
        return checked_pair(turns, chosen, rejected, row)
    if any(turns and turns[0]["role"] == "assistant" for turns in (chosen, rejected)):
        return checked_pair(prompt_from_texts(row), chosen, rejected, row)
    return checked_pair(*split_dialogues(chosen, rejected), row)


def checked_pair(prompt: list[Turn], chosen: list[Turn], rejected: list[Turn], row: Row) -> PairRow:
    """The pair, if its roles and texts are those of a prompt and two different answers, or DropRow.

    A system prompt in a column of its own opens a prompt that has no system turn.
    """
    prompt = checked_prompt(prompt, row)
    for completion in (chosen, rejected):
        if not completion:
            raise DropRow(Reason.EMPTY_RESPONSE)
        roles = [turn["role"] for turn in completion]
        if roles[0] != "assistant" or roles[-1] != "assistant" or not SYSTEM_ROLES.isdisjoint(roles):
            raise DropRow(Reason.WRONG_ROLES)
        if not _says_something(completion[-1]):
            raise DropRow(Reason.EMPTY_RESPONSE)
    if chosen == rejected:
        raise DropRow(Reason.IDENTICAL_RESPONSES)
    if any(row.get(name) for name in MEDIA):
        raise DropRow(Reason.UNSUPPORTED_CONTENT)
    return PairRow(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=tools_of(row.get(TOOLS)),
        template_kwargs=template_kwargs_of(row.get(TEMPLATE_KWARGS)),
    )


def checked_prompt(prompt: list[Turn], row: Row) -> list[Turn]:
    """The prompt, after the system turn of a column of its own, if it has none, or DropRow."""
    if prompt and SYSTEM_ROLES.isdisjoint(turn["role"] for turn in prompt):
        prompt = [*_system_turn(row), *prompt]
    check_prompt(prompt)
    return prompt


def begun(pair: PairRow, text: str) -> PairRow:
    """The pair with answers that both go on from this text, which is not scored: an open turn ends the prompt."""
    return replace(pair, prompt=[*pair.prompt, {"role": "assistant", "content": text}])


def dialogue(prompt: Sequence[Message], answer: Sequence[Message]) -> list[Message]:
    """Prompt and answer. An assistant turn that ends the prompt is the beginning of the answer's first turn."""
    if not prompt or prompt[-1]["role"] != "assistant":
        return [*prompt, *answer]
    text = prompt[-1]["content"] + (answer[0].get("content") or "")
    return [*prompt[:-1], {**answer[0], "content": text}, *answer[1:]]


def check_prompt(prompt: Sequence[Turn]) -> None:
    """Raise DropRow unless these turns are a prompt."""
    users = [turn for turn in prompt if turn["role"] == "user"]
    if not prompt or (users and not any(map(_says_something, users))):
        raise DropRow(Reason.EMPTY_PROMPT)
    if not users or prompt[-1]["role"] not in {"user", "tool"}:
        raise DropRow(Reason.WRONG_ROLES)
    if not _says_something(prompt[-1]):
        raise DropRow(Reason.EMPTY_PROMPT)


def _system_turn(row: Row) -> list[Turn]:
    """The system turn that a column of the row gives; none where it is null or blank."""
    system = next((text_of(row[name]) for name in SYSTEM_TEXTS if row.get(name) is not None), "")
    return [{"role": "system", "content": system}] if system.strip() else []


def _turn(item: Any) -> Turn:
    if item is None:
        raise DropRow(Reason.NULL_FIELD)
    if not isinstance(item, Mapping):
        raise DropRow(Reason.WRONG_TYPE)
    role = text_of(item.get("role"))
    if role not in ROLES:
        raise DropRow(Reason.WRONG_ROLES)
    turn, content = {"role": role}, item.get("content")
    if not item.keys() <= PLAIN_KEYS:
        turn |= _fields_of(item)
        if content is None and _says_something(turn):
            return turn
    turn["content"] = "".join(map(_text_of_part, content)) if isinstance(content, list) else text_of(content)
    return turn


def _fields_of(item: Mapping[str, Any]) -> dict[str, str]:
    """What a message holds beside role and content."""
    if any(item.get(key) for key in BEYOND_TEXT):
        raise DropRow(Reason.UNSUPPORTED_CONTENT)
    fields = {name: item[name] for name in MESSAGE_FIELDS if item.get(name) is not None}
    texts = {name: _tool_calls(value) if name == TOOL_CALLS else text_of(value) for name, value in fields.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _says_something(turn: Turn) -> bool:
    """Whether a turn holds more than white space."""
    return TOOL_CALLS in turn or any(turn.get(name, "").strip() for name in ("content", *REASONING))


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return text_of(part)
    if isinstance(part, Mapping) and part.get("type") == "text":
        return text_of(part.get("text"))
    raise DropRow(Reason.UNSUPPORTED_CONTENT)


def tools_of(value: Any) -> str | None:
    """JSON text of a list of tool schemas, or DropRow."""
    return _json_text(value, list, Reason.INVALID_TOOLS)


def _tool_calls(value: Any) -> str | None:
    """JSON text of a list of tool calls."""
    return _json_text(value, list, Reason.INVALID_TOOL_CALLS)


def template_kwargs_of(value: Any) -> str | None:
    """JSON text of the arguments that a row gives the chat template, or DropRow."""
    text = _json_text(value, dict, Reason.INVALID_TEMPLATE_KWARGS)
    if text is not None and not RESERVED_KWARGS.isdisjoint(json.loads(text)):
        raise DropRow(Reason.INVALID_TEMPLATE_KWARGS)
    return text


def _json_text(value: Any, kind: type, otherwise: Reason) -> str | None:
    """JSON text of a list of objects, or of an object. Keys that are null are left out: Arrow fills them in."""
    try:
        if isinstance(value, str):
            value = _parsed(text_of(value)) if value.strip() else None
        elif isinstance(value, list):
            value = [_parsed(item if isinstance(item, str) else json.dumps(item)) for item in value]
        elif value is not None:
            value = _parsed(json.dumps(value))
        if not value:
            return None
        items = value if isinstance(value, list) else [value]
        if not isinstance(value, kind) or not all(isinstance(item, Mapping) for item in items) or _is_deep(value):
            raise DropRow(otherwise)
        return text_of(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    except (TypeError, ValueError, RecursionError):
        raise DropRow(otherwise) from None


def _parsed(text: str) -> Any:
    """The value of a JSON text without keys that are null; any other text as it is."""
    try:
        return json.loads(
            text, object_hook=lambda found: {key: item for key, item in found.items() if item is not None}
        )
    except ValueError:
        return text


def _is_deep(value: Any) -> bool:
    """Whether lists and objects are nested more deeply than templates can be trusted with."""
    level, depth = [value], 0
    while level and depth < _MAX_DEPTH:
        inner = [item for outer in level for item in (outer.values() if isinstance(outer, Mapping) else outer)]
        level, depth = [item for item in inner if isinstance(item, (list, Mapping))], depth + 1
    return bool(level)
