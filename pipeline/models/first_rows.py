"""What the first rows show of texts and template, and what is said once about it in the log.

Two things are legal and nearly always a mistake: texts that are templated already, so that the template is applied
twice, and a template that leaves out or changes a part of the answers, as some do with `<think>`.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pipeline.schema import REASONING, TOOL_CALLS
from pipeline.shown import shown

_ROWS: Final = 64
_SHORTEST_MARK: Final = 4  # characters; shorter ones, such as <s>, also stand in markup

_log = logging.getLogger(__name__)


class FirstRows:
    """Looks at the first rows that a tokenizer gets. owner: whose template it is. is_templated: one is applied."""

    def __init__(self, tokenizer: Any, owner: str, *, is_templated: bool) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        marks = {str(token) for token in added if token.special} | {*tokenizer.all_special_tokens}
        self._marks = sorted(mark for mark in marks if len(mark) >= _SHORTEST_MARK)
        self._owner = owner
        self._is_templated = is_templated
        self._num_rows = 0
        self._num_marked = 0
        self._changed: dict[str, list[str]] = {}  # ids of rows, by what their answers lack in the template's text
        self._is_told = {"marked": False, "changed": False}

    def look(
        self,
        row: str,
        prompt: Sequence[Mapping[str, Any]],
        sides: Sequence[tuple[Sequence[Mapping[str, Any]], str]],
        tools: str | None,
    ) -> None:
        """Look at a pair. row: its id. sides: the turns of each response, and the text of the whole dialogue."""
        if self._num_rows >= _ROWS or not self._is_templated:
            return
        self._num_rows += 1
        contents = [turn.get("content") or "" for turn in (*prompt, *(turn for side, _ in sides for turn in side))]
        self._num_marked += any(mark in text for mark in self._marks for text in contents)
        lacking = {name for turns, text in sides for name in _lacking(turns, tools, text)}
        for name in sorted(lacking):
            self._changed.setdefault(name, []).append(row)

    def tell(self) -> None:
        """Log what was found, each thing once."""
        if 2 * self._num_marked > self._num_rows and not self._is_told["marked"]:
            self._is_told["marked"] = True
            _log.warning(
                "%d of the first %d rows hold special tokens of the tokenizer in their texts: they seem to be "
                "templated already, and the chat template is applied to them again. Set tokens.template: none to score "
                "the texts as they are.",
                self._num_marked,
                self._num_rows,
            )
        if self._changed and not self._is_told["changed"]:
            self._is_told["changed"] = True
            found = "; ".join(
                f"{name} in {len(rows)}, such as {shown(rows[0])}" for name, rows in self._changed.items()
            )
            _log.warning(
                "%s leaves out or changes what responses of the first %d rows hold: %s. The scores are those of what "
                "it writes, as in TRL. If that is not what the model was trained on, set tokens.chat_template.",
                self._owner,
                self._num_rows,
                found,
            )


def _lacking(turns: Iterable[Mapping[str, Any]], tools: str | None, text: str) -> Iterator[str]:
    """What turns and tools hold and the text of the dialogue does not; white space does not count."""
    bare = _bare(text)
    for turn in turns:
        for name in ("content", *REASONING):
            if _bare(turn.get(name) or "") not in bare:
                yield name
        calls = json.loads(turn.get(TOOL_CALLS) or "[]")
        if any(_name(call) not in text for call in calls):
            yield TOOL_CALLS
    if any(_name(tool) not in text for tool in json.loads(tools or "[]")):
        yield "tools"


def _name(tool: Mapping[str, Any]) -> str:
    """The name of a tool or of a call, flat or within `function`."""
    inner = tool.get("function")
    return str((inner if isinstance(inner, Mapping) else tool).get("name", ""))


def _bare(text: str) -> str:
    return "".join(text.split())
