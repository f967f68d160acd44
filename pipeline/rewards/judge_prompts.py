"""What judges are asked, and how their verdicts are read: one entry for each prompt of a style.

The texts are files in prompts/, of our own wording. What stands before the line `{# user #}` is the system turn. A
template gets `question` (the turns before the answers), `first` and `second` (the answers in the order that is asked
for; of a pointwise one `first` alone), `rubric`, and `mark`, which no answer can know.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.config import Judging
from pipeline.data.sealed import digest
from pipeline.errors import ConfigError
from pipeline.models.templates import Messages
from pipeline.rewards.backend import Dialogue
from pipeline.schema import TOOL_CALLS

_USER: Final = re.compile(r"^\{# user #\}\n", re.MULTILINE)
_RUBRIC: Final = "A good answer does what was asked, is correct and complete, is easy to follow, and does no harm."
_A_OR_B: Final = {"A": 1.0, "B": -1.0}
_THOUGHT: Final = "</think>"
_AFTER: Final = r"(?!\w|\.\d)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How one kind of judge is asked, and how it answers.

    Attributes:
        version: to be raised when the same answer would be read in another way.
        file: of the text in prompts/; None for turns with the roles `response_1` and `response_2`.
        values: the number that each verdict stands for. Of a pairwise one: 1 if the first answer is better, -1 if the
            second one is. Of a pointwise one: the rating.
        verdict: finds verdicts in an answer; group 1 is the key of `values`. The last one counts.
        is_sole: whether an answer with several different verdicts must end with the one that counts.
        is_first: whether the verdict is all of an answer, so that its first token tells how likely each verdict is.
        parameters: of requests.
        tries: how often an answer without a verdict is asked for.
    """

    version: int = 1
    file: str | None
    values: Mapping[str, float]
    verdict: re.Pattern[str]
    is_sole: bool = True
    is_first: bool = False
    parameters: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 2048})
    tries: int = 1

    def label(self, text: str) -> tuple[str, int] | None:
        """The verdict in what a judge says after its thoughts, and the place; None if there is none that is clear."""
        thoughts = text.rfind(_THOUGHT)
        begin = 0 if thoughts < 0 else thoughts + len(_THOUGHT)
        found = [*self.verdict.finditer(text[begin:])]
        if not found or found[-1][1] not in self.values:
            return None
        ends = re.search(r"\w", text[begin + found[-1].end() :]) is None
        is_clear = ends or not self.is_sole or len({each[1] for each in found}) == 1
        return (found[-1][1], begin + found[-1].start(1)) if is_clear else None


PRESETS: Final[Mapping[tuple[str, str], Preset]] = {
    ("pairwise", "default"): Preset(
        file="pairwise.jinja",
        values=_A_OR_B,
        verdict=re.compile(r"\A\W*(?i:answer\W+)?([AB])\W*\Z"),
        is_first=True,
        parameters={"temperature": 0.0, "max_tokens": 8},
    ),
    ("pairwise", "mt-bench"): Preset(
        file="mt-bench.jinja", values={**_A_OR_B, "C": 0.0}, verdict=re.compile(r"\[\[([ABC])\]\]")
    ),
    ("pairwise", "rm-r1"): Preset(
        file="rm-r1.jinja",
        values=_A_OR_B,
        verdict=re.compile(r"<answer>\s*\[\[([AB])\]\]\s*</answer>"),
        parameters={"temperature": 0.0, "max_tokens": 8192},
    ),
    ("pairwise", "prometheus"): Preset(
        file="prometheus-pairwise.jinja", values=_A_OR_B, verdict=re.compile(rf"\[RESULT\]\W*([AB]){_AFTER}")
    ),
    ("pairwise", "nemotron-genrm"): Preset(
        file=None,
        values={str(rank): (3.5 - rank) / 2.5 for rank in range(1, 7)},  # 1: the first is far better, 6: the second
        verdict=re.compile(rf'"ranking"\s*:\s*"?([1-6]){_AFTER}'),
        parameters={"temperature": 0.6, "top_p": 0.95, "max_tokens": 16384},
        tries=3,
    ),
    ("pointwise", "default"): Preset(
        file="pointwise.jinja",
        values={str(rating): float(rating) for rating in range(1, 10)},
        verdict=re.compile(r"\A\W*([1-9])(?:\s*/\s*9)?\W*\Z"),
        is_first=True,
        parameters={"temperature": 0.0, "max_tokens": 8},
    ),
    ("pointwise", "prometheus"): Preset(
        file="prometheus-pointwise.jinja",
        values={str(rating): float(rating) for rating in range(1, 6)},
        verdict=re.compile(rf"\[RESULT\]\W*([1-5]){_AFTER}"),
    ),
    ("pointwise", "rewardbench"): Preset(
        file="rewardbench.jinja",
        values={str(rating): float(rating) for rating in range(1, 11)},
        verdict=re.compile(rf"(?<![\w./-])(\d+(?:\.\d+)?)(?:\s*/\s*10)?(?!/){_AFTER}"),
        is_sole=False,
    ),
}


class Prompt:
    """The prompt of a section. Raises a ConfigError if its template cannot be used."""

    def __init__(self, section: Judging) -> None:
        self.preset = PRESETS[section.style, section.prompt]
        self.rubric = section.rubric or _RUBRIC
        self._section = section
        try:
            self._turns = [(role, _ENVIRONMENT.from_string(text)) for role, text in self._parts]
            self._filled("1 + 1?", "2", "3")
        except TemplateError as error:
            raise ConfigError(f"reward.template cannot be used: {error}. Mend the file.") from None

    @cached_property
    def text(self) -> str | None:
        """The text of the prompt; None if there are only turns."""
        file = self.preset.file
        if self._section.template is not None or file is None:
            return self._section.template
        return (Path(__file__).parent / "prompts" / file).read_text(encoding="utf-8")

    @property
    def _parts(self) -> list[tuple[str, str]]:
        if self.text is None:
            return []
        *system, user = _USER.split(self.text, maxsplit=1)
        return [*(("system", text) for text in system), ("user", user)]

    def messages(self, answers: Sequence[Dialogue]) -> list[dict[str, str]]:
        """What a judge is sent about one answer, or about two in this order."""
        prompt, texts = answers[0].prompt, [as_text(one.answer) for one in answers]
        tools = [{"role": "system", "content": f"[tools]\n{answers[0].tools}"}] if answers[0].tools else []
        if not self._turns:
            turns = [{"role": turn["role"], "content": _said(turn)} for turn in [*tools, *prompt]]
            return turns + [{"role": f"response_{i}", "content": text} for i, text in enumerate(texts, start=1)]
        return self._filled(as_text([*tools, *prompt]), *texts)

    def _filled(self, question: str, first: str, second: str = "") -> list[dict[str, str]]:
        values = {"question": question, "first": first, "second": second, "rubric": self.rubric}
        mark = digest("\n".join(values.values()).encode())[:8]
        return [{"role": role, "content": turn.render(values, mark=mark).strip()} for role, turn in self._turns]


_ENVIRONMENT: Final = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def as_text(turns: Messages) -> str:
    """Turns as one text: what is said, and tool calls. Several are headed by their roles; thoughts are left out."""
    said = [(turn["role"], _said(turn)) for turn in turns]
    return said[0][1] if len(said) == 1 else "\n\n".join(f"[{role}]\n{text}" for role, text in said)


def _said(turn: Mapping[str, Any]) -> str:
    calls = turn.get(TOOL_CALLS)
    return "\n".join(filter(None, [turn["content"], calls and f"[tool calls]\n{calls}"]))
