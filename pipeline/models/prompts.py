"""Messages to token ids: where a response starts, and how it is truncated. See templates for dialogues as text.

`PairTokenizer` serves causal models. Its preset `trl` gives the tokens that TRL 1.16's DPOTrainer trains on. The prompt
is rendered with the generation prompt, and prompt and response are rendered and tokenised together. The response starts
after the longest token prefix that all three share. All that follows counts, as in TRL: of a response of several turns
also the results of tools and the turns of the user, headers included. Preset `paper` is described at `_as_paper`.
`DialogueTokenizer` serves reward models: whole dialogues without a generation prompt.

A row that cannot be used gives one of the reasons of pipeline.drops in place of tokens.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from pipeline.config import DEFAULT_DATE, Tokens
from pipeline.drops import Reason
from pipeline.models.first_rows import FirstRows
from pipeline.models.packing import Int32Array, common_prefix
from pipeline.models.templates import SET_REWARD_TEMPLATE, ChatTemplate, Messages, NoTemplate
from pipeline.sources.turns import dialogue

# A template that names one of these knows the system role.
_SYSTEM_MARKS: Final = ("system", "<|im_start|>")

_Split = tuple[list[int], list[int]]
"""Prompt ids and response ids of one side."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedPair:
    """A pair as causal models read it.

    Attributes:
        chosen_ids: prompt and chosen response together.
        rejected_ids: prompt and rejected response together.
        chosen_start: index of the first scored token of the chosen response, at least 1.
        rejected_start: the same of the rejected one.
        num_tokens_prompt: tokens before the response, of the side that keeps more of them.
        num_tokens_chosen: scored tokens of the chosen response.
        num_tokens_rejected: scored tokens of the rejected response.
        truncated: whether a token of either side was cut off.
    """

    chosen_ids: Int32Array
    rejected_ids: Int32Array
    chosen_start: int
    rejected_start: int
    num_tokens_prompt: int
    num_tokens_chosen: int
    num_tokens_rejected: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedDialogue:
    """Prompt and one response, cut to length. `start` of the response is negative if its first tokens were cut off."""

    ids: Int32Array
    truncated: bool
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedDialogues:
    """Both dialogues of a pair as a reward model reads them."""

    chosen_ids: Int32Array
    rejected_ids: Int32Array
    truncated: bool


class PairTokenizer:
    """Turns pairs into token ids for causal models that share one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        tokens: preset, lengths, truncation, and a template if it is not the tokenizer's own.

    Raises a ModelError if there is no usable chat template.
    """

    def __init__(self, tokenizer: Any, tokens: Tokens) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self.template = ChatTemplate.of(tokenizer, tokens)
        self._notices = FirstRows(tokenizer, self.template.owner, is_templated=tokens.template == "chat")

    def tokenize(
        self,
        prompt: Messages,
        chosen: Messages,
        rejected: Messages,
        tools: str | None = None,
        kwargs: str | None = None,
        *,
        row: str = "",
    ) -> TokenizedPair | Reason:
        """Token ids of a pair, or the reason why it cannot be used.

        prompt: the turns before the response. chosen, rejected: the turns of each response alone. tools: JSON text of
        the tool schemas for the template; the paper preset takes none. kwargs: JSON text of the row's own arguments for
        the template. row: id of the row, for messages.

        Raises a ModelError if the template takes too long on row after row.
        """
        if self._tokens.preset == "paper":
            make = partial(_as_paper, self._tokenizer, self.template, self._tokens, (prompt, chosen, rejected), kwargs)
        else:
            make = partial(self._as_trl, prompt, chosen, rejected, tools, kwargs, row)
        return self.template.outcome(make, row)

    def tell(self) -> None:
        """Log, once, what the first rows show: texts that are templated already, or a template that changes answers."""
        self._notices.tell()

    def _as_trl(
        self, prompt: Messages, chosen: Messages, rejected: Messages, tools: str | None, kwargs: str | None, row: str
    ) -> TokenizedPair | Reason:
        render = partial(self.template.text, tools=tools, kwargs=kwargs)
        whole = [dialogue(prompt, side) for side in (chosen, rejected)]
        texts = [render(prompt, add_generation_prompt=True), *map(render, whole)]
        self._notices.look(row, prompt, ((chosen, texts[1]), (rejected, texts[2])), tools)
        prompt_ids, chosen_ids, rejected_ids = (np.asarray(self.template.ids_of(text), np.int32) for text in texts)
        start = min(common_prefix(prompt_ids, chosen_ids), common_prefix(prompt_ids, rejected_ids))
        max_length, keep_start = self._tokens.max_length, self._tokens.truncation == "keep_start"
        if keep_start and start >= max_length:
            return Reason.PROMPT_TOO_LONG
        sides = []
        for ids in (chosen_ids, rejected_ids):
            cut = 0 if keep_start else max(0, len(ids) - max_length)
            kept = ids[cut : cut + max_length]
            sides.append(TokenizedDialogue(ids=kept, start=start - cut, truncated=len(kept) < len(ids)))
        return _finished_pair(*sides)


class DialogueTokenizer:
    """Turns pairs into whole dialogues for a reward model, by its own tokenizer and template.

    Args:
        tokenizer: the reward model's transformers tokenizer. Its `truncation_side` says which end is cut.
        max_length: most tokens of a dialogue.
        date: what templates read in place of the clock.
        text: a template to use instead of the tokenizer's own.
        is_templated: whether a template is used at all; see NoTemplate.

    Raises a ModelError if the tokenizer has no usable chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        date: datetime.date = DEFAULT_DATE,
        *,
        text: str | None = None,
        is_templated: bool = True,
    ) -> None:
        self._max_length = max_length
        self._keep_end = tokenizer.truncation_side == "left"
        self.template = (
            ChatTemplate(tokenizer, text, date, remedy=SET_REWARD_TEMPLATE) if is_templated else NoTemplate(tokenizer)
        )

    def tokenize(
        self,
        prompt: Messages,
        chosen: Messages,
        rejected: Messages,
        tools: str | None = None,
        kwargs: str | None = None,
        *,
        row: str = "",
    ) -> TokenizedDialogues | Reason:
        """Token ids of both dialogues, or the reason why they cannot be used. As in PairTokenizer."""

        def both() -> TokenizedDialogues | Reason:
            first, second = (self._one(dialogue(prompt, answer), tools, kwargs) for answer in (chosen, rejected))
            if isinstance(first, Reason) or isinstance(second, Reason):
                return Reason.EMPTY_AFTER_TRUNCATION
            truncated = first.truncated or second.truncated
            if np.array_equal(first.ids, second.ids):
                return Reason.IDENTICAL_AFTER_TRUNCATION if truncated else Reason.IDENTICAL_IN_TEMPLATE
            return TokenizedDialogues(chosen_ids=first.ids, rejected_ids=second.ids, truncated=truncated)

        return self.template.outcome(both, row)

    def tokenize_one(
        self, prompt: Messages, answer: Messages, tools: str | None = None, kwargs: str | None = None, *, row: str = ""
    ) -> TokenizedDialogue | Reason:
        """Token ids of one dialogue, or the reason why it cannot be used. As in PairTokenizer."""
        return self.template.outcome(lambda: self._one(dialogue(prompt, answer), tools, kwargs), row)

    def tell(self) -> None:
        """Nothing to tell: PairTokenizer tells what the first rows show."""

    def _one(self, turns: Messages, tools: str | None, kwargs: str | None = None) -> TokenizedDialogue | Reason:
        ids = self.template.ids(turns, tools, kwargs)
        cut = ids[-self._max_length :] if self._keep_end else ids[: self._max_length]
        if not len(cut):
            return Reason.EMPTY_AFTER_TRUNCATION
        return TokenizedDialogue(ids=cut, truncated=len(ids) > self._max_length)


def _finished_pair(chosen: TokenizedDialogue, rejected: TokenizedDialogue) -> TokenizedPair | Reason:
    """Both sides as a pair, or why they make none."""
    # Nothing predicts a sequence's first token, so it is never scored, even if it is part of the response.
    chosen_start, rejected_start = max(1, chosen.start), max(1, rejected.start)
    num_chosen, num_rejected = len(chosen.ids) - chosen_start, len(rejected.ids) - rejected_start
    if num_chosen < 1 or num_rejected < 1:
        return Reason.EMPTY_AFTER_TRUNCATION
    truncated = chosen.truncated or rejected.truncated
    if chosen_start == rejected_start and np.array_equal(chosen.ids, rejected.ids):
        return Reason.IDENTICAL_AFTER_TRUNCATION if truncated else Reason.IDENTICAL_IN_TEMPLATE
    return TokenizedPair(
        chosen_ids=chosen.ids,
        rejected_ids=rejected.ids,
        chosen_start=chosen_start,
        rejected_start=rejected_start,
        num_tokens_prompt=max(chosen_start, rejected_start),
        num_tokens_chosen=num_chosen,
        num_tokens_rejected=num_rejected,
        truncated=truncated,
    )


def _as_paper(
    tokenizer: Any,
    template: ChatTemplate,
    tokens: Tokens,
    turns: tuple[Messages, Messages, Messages],
    kwargs: str | None = None,
) -> TokenizedPair | Reason:
    """The tokens that the authors' scripts score (arXiv 2503.01864, after the SimPO trainer), quirks included.

    Prompt and responses are rendered apart, the prompt without a generation prompt. So the assistant header and every
    end-of-turn token count as response. An empty system message goes first if the template knows the role. A token that
    merges across the seam moves to the response. BOS goes before the prompt and EOS after the response unless they are
    there. If the longer response is too long for `max_length`, the prompt keeps its last `max_prompt_length` tokens,
    with or without BOS. If that is not enough, both responses keep only their first `max_length - max_prompt_length`
    tokens, however short the prompt is. `tokens.truncation` has no effect.

    The scripts stop if tokenising prompt and response together changes more than one token at the seam. Here such a row
    is dropped as boundary_mismatch. A tokenizer without BOS or EOS gets none. Tools are left out.
    """
    prompt, *answers = turns
    if prompt and prompt[-1]["role"] == "assistant":  # an answer already begun, which counts as response here
        prompt, answers = prompt[:-1], [dialogue(prompt[-1:], answer) for answer in answers]
    knows_system = any(mark in (tokens.chat_template or tokenizer.get_chat_template()) for mark in _SYSTEM_MARKS)
    if knows_system and prompt and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": ""}, *prompt]
    text, *texts = [template.text(messages, None, kwargs) for messages in (prompt, *answers)]
    bos = tokenizer.bos_token or ""
    first, second = (_split_at_seam(template, text, answer.removeprefix(bos)) for answer in texts)
    if first is None or second is None:
        return Reason.BOUNDARY_MISMATCH
    num_different = sum(a != b for a, b in zip(first[0], second[0], strict=False))
    if num_different > 1 or abs(len(first[0]) - len(second[0])) > 1:
        return Reason.BOUNDARY_MISMATCH
    return _finished_pair(*_truncated([_with_ends(tokenizer, split) for split in (first, second)], tokens))


def _split_at_seam(template: ChatTemplate, prompt: str, answer: str) -> _Split | None:
    """Ids of prompt and answer tokenised together, cut where the prompt's own ids end."""
    whole, alone = template.ids_of(prompt + answer), template.ids_of(prompt)
    if len(whole) < len(alone):
        return None
    seam = len(alone) - (alone != whole[: len(alone)])
    return whole[:seam], whole[seam:]


def _with_ends(tokenizer: Any, split: _Split) -> _Split:
    prompt, response = split
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and prompt[:1] != [bos]:
        prompt = [bos, *prompt]
    if eos is not None and response[-1:] != [eos]:
        response = [*response, eos]
    return prompt, response


def _truncated(splits: Sequence[_Split], tokens: Tokens) -> list[TokenizedDialogue]:
    longest = max(len(response) for _, response in splits)
    sides = []
    for prompt, response in splits:
        kept, answer = prompt, response
        if len(kept) + longest > tokens.max_length:
            kept = kept[-tokens.max_prompt_length :]
        if len(kept) + longest > tokens.max_length:
            answer = answer[: tokens.max_length - tokens.max_prompt_length]
        truncated = len(kept) + len(answer) < len(prompt) + len(response)
        ids = np.asarray(kept + answer, dtype=np.int32)
        sides.append(TokenizedDialogue(ids=ids, start=len(kept), truncated=truncated))
    return sides
