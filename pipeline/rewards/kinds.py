"""The servers of reward models: how each is asked about some dialogues, and where the numbers stand in its answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pipeline.config import EndpointReward
from pipeline.errors import ConfigError
from pipeline.rewards.answers import Form

Dialogues = Sequence[list[int]] | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One server.

    Attributes:
        path: what scores, put after a base URL.
        body: the request, given the model's name and the dialogues as token ids, or as texts if `reads_text`.
        numbers: from an answer the numbers of each dialogue, in the order of the request.
        reads_text: whether it takes texts, and tokenises them itself.
        adds_special: whether it then adds the special tokens of the tokenizer.
        about: path of facts about the model, and what is taken from them; None if it has no such path.
        raw: how to have it give rewards without a sigmoid.
    """

    path: str
    body: Callable[[str, Dialogues], Any]
    numbers: Callable[[Any], list[Sequence[Any]]]
    reads_text: bool = False
    adds_special: bool = False
    about: tuple[str, Callable[[Any], str]] | None = None
    raw: str


def _by_index(answer: Any) -> list[Sequence[Any]]:
    found = sorted(answer["data"], key=lambda one: one["index"])
    if [one["index"] for one in found] != [*range(len(found))]:
        raise ValueError
    return [one["probs"] for one in found]


KINDS: Final[Mapping[str, Kind]] = {
    "vllm": Kind(
        path="/classify",
        body=lambda name, rows: {"model": name, "input": rows, "use_activation": False},
        numbers=_by_index,
        raw="use_activation: false was sent, which vLLM before 0.11.2 does not know. Take a newer one, or start it "
        """with --pooler-config '{"use_activation": false}'""",
    ),
    "sglang": Kind(
        path="/classify",
        body=lambda _, rows: {"input_ids": rows},
        numbers=lambda answer: [one["embedding"] for one in answer],
        about=("/get_model_info", lambda answer: str(answer["model_path"])),
        raw="Start SGLang with --is-embedding and a reward model whose class gives logits",
    ),
    "openrlhf": Kind(
        path="/get_reward",
        body=lambda _, rows: {"query": rows},
        numbers=lambda answer: [[reward] for reward in answer["rewards"]],
        reads_text=True,
        raw="Start serve_rm without anything that rescales rewards",
    ),
    "tei": Kind(
        path="/predict",
        # Of text-embeddings-inference a plain list of two texts is one pair.
        body=lambda _, rows: {"inputs": [[row] for row in rows], "raw_scores": True, "truncate": False},
        numbers=lambda answer: [[label["score"] for label in labels] for labels in answer],
        reads_text=True,
        adds_special=True,
        about=("/info", lambda answer: f"{answer['model_id']} {answer.get('model_sha')}"),
        raw="raw_scores: true was sent; a proxy may have left it out",
    ),
}


def served_name(section: EndpointReward) -> str:
    """The name that requests give the model."""
    return section.served_name or section.model


def form_of(section: EndpointReward) -> Form[Any]:
    """How the server of a section is asked for rewards. A reward that is not finite is none."""
    kind = KINDS[section.kind]
    return Form(
        path=kind.path,
        body_of=partial(kind.body, served_name(section)),
        read=lambda answer: [_reward(numbers, section) for numbers in kind.numbers(answer)],
        batch_rows=section.batch_rows,
    )


def _reward(numbers: Sequence[Any], section: EndpointReward) -> float | None:
    if len(numbers) != 1:
        raise ConfigError(
            f"reward.urls: the server gives {len(numbers)} numbers a dialogue; a reward model gives one. Serve a model "
            f"that was trained as one (num_labels 1), with kind: {section.kind}."
        )
    value = math.nan if numbers[0] is None else float(numbers[0])
    return value if math.isfinite(value) else None


def inputs_of(section: EndpointReward, tokenizer: Any) -> Callable[[Sequence[int]], list[int] | str | None]:
    """What makes token ids to what the server of a section takes.

    That is the ids, or a text of which the server makes just these ids; None if there is no such text.
    """
    kind = KINDS[section.kind]

    def text_of(ids: Sequence[int]) -> str | None:
        wanted = list(map(int, ids))
        cuts = [(0, 0), (1, 0), (1, 1), (0, 1)] if kind.adds_special else [(0, 0)]
        for begin, end in cuts:  # without what the server adds at the ends
            kept = wanted[begin : len(wanted) - end]
            text = str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            if tokenizer(text, add_special_tokens=kind.adds_special)["input_ids"] == wanted:
                return text
        return None

    return text_of if kind.reads_text else lambda ids: list(map(int, ids))
