"""The tokens that the authors' scripts score (arXiv 2503.01864, after the SimPO trainer), quirks included.

Prompt and responses are rendered apart, the prompt without a generation prompt. So the assistant header and every
end-of-turn token count as response. An empty system message goes first if the template knows the role. A token that
merges across the seam moves to the response. BOS goes before the prompt and EOS after the response unless they are
there. If the longer response is too long for `max_length`, the prompt keeps its last `max_prompt_length` tokens, with
or without BOS. If that is not enough, both responses keep only their first `max_length - max_prompt_length` tokens,
however short the prompt is. `tokens.truncation` has no effect.

The scripts stop if tokenising prompt and response together changes more than one token at the seam. Here such a row is
dropped as boundary_mismatch. A tokenizer without BOS or EOS gets none. Tools are left out.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pipeline.config import Tokens
from pipeline.drops import Reason
from pipeline.models.prompts import TokenizedDialogue, TokenizedPair, finished_pair
from pipeline.models.templates import ChatTemplate, Messages

_KNOWS_SYSTEM_ROLE: Final = ("system", "<|im_start|>")

_Split = tuple[list[int], list[int]]
"""Prompt ids and response ids of one side."""


def tokenize_as_paper(
    tokenizer: Any, template: ChatTemplate, tokens: Tokens, turns: tuple[Messages, Messages, Messages]
) -> TokenizedPair | Reason:
    """Token ids of a pair by the authors' rules, or the reason why it cannot be used.

    Args:
        tokenizer: a transformers tokenizer.
        template: what it renders with.
        tokens: `max_length` and `max_prompt_length` (the paper: 2048 and 1800).
        turns: prompt, chosen and rejected messages.
    """
    prompt, *answers = turns
    knows_system = any(mark in (tokens.chat_template or tokenizer.get_chat_template()) for mark in _KNOWS_SYSTEM_ROLE)
    if knows_system and prompt and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": ""}, *prompt]
    text, *texts = [template.text(messages) for messages in (prompt, *answers)]
    bos = tokenizer.bos_token or ""
    first, second = (_split_at_seam(template, text, answer.removeprefix(bos)) for answer in texts)
    if first is None or second is None:
        return Reason.BOUNDARY_MISMATCH
    num_different = sum(a != b for a, b in zip(first[0], second[0], strict=False))
    if num_different > 1 or abs(len(first[0]) - len(second[0])) > 1:
        return Reason.BOUNDARY_MISMATCH
    return finished_pair(*_truncated([_with_ends(tokenizer, split) for split in (first, second)], tokens))


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
