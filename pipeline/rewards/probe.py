"""Rewards of a few texts of alignpot's own tell whether servers, workers and the cache have the same model."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from pipeline.config import EndpointReward, ServiceReward
from pipeline.data.sealed import agree
from pipeline.errors import ConfigError, ModelError, TemporaryError
from pipeline.rewards.answers import ask_rows
from pipeline.rewards.cache import Cache
from pipeline.rewards.http import Client, Failed, Service
from pipeline.rewards.kinds import KINDS, form_of, inputs_of, served_name
from pipeline.shown import shown

TOLERANCE: Final = 0.02
"""How far a reward of the probe may move, or by which share of it above 1: bfloat16 and other rows move them."""
_TEXTS: Final = (
    "What is the capital of France? Paris.",
    "Count to five. One, two, three, four, five, and then some more.",
    "Sorry, I cannot help with that!",
    "def add(a, b):\n    return a - b",
)
_LIMIT_S: Final = 20.0

_log = logging.getLogger(__name__)


def service_of(section: ServiceReward) -> Service:
    """The service that a section names."""
    return Service(
        section="reward",
        urls=section.urls,
        key_variable=section.key_variable,
        concurrency=section.concurrency,
        timeout_s=section.timeout_s,
        deadline_s=section.deadline_s,
    )


class Probe:
    """These texts, as one request to each server of a section.

    tokenizer: of the model that is served.

    Raises a ModelError if the server takes texts and the tokenizer does not fit that.
    """

    def __init__(self, section: EndpointReward, tokenizer: Any) -> None:
        self._section = section
        self._inputs = list(map(inputs_of(section, tokenizer), (tokenizer(text)["input_ids"] for text in _TEXTS)))
        if None in self._inputs:
            raise ModelError(
                f"The tokenizer of {section.model} does not give the token ids of its own text again, and kind "
                f"{section.kind} takes texts. Serve the model by vLLM or SGLang, which take token ids."
            )

    def ask(self) -> tuple[list[float], list[str]]:
        """The rewards that all servers agree on, and what they say of their models. Servers that are down are left out.

        Raises a ConfigError if they do not agree with each other or the section, a TemporaryError if none answers.
        """
        expected: Sequence[float] | None = self._section.probe
        found: list[tuple[list[float], str]] = []
        for url in self._section.urls:
            try:
                rewards, about = self._ask_one(url)
            except TemporaryError as error:
                if url == self._section.urls[-1] and not found:
                    raise
                _log.warning("%s", error)
                continue
            expected = expected or rewards
            if not agree(expected, rewards, TOLERANCE):
                raise ConfigError(
                    f"{url} serves another model than the run began with, or than the other URLs: rewards of the probe "
                    f"are {_numbers(rewards)}; wanted {_numbers(expected)}, give or take {TOLERANCE:g}. Serve the same "
                    "weights at every URL. For new ones use another output."
                )
            found.append((rewards, about))
        return found[0][0], sorted({about for _, about in found})

    def check(self, cache: Cache, rewards: Sequence[float]) -> None:
        """Check that the rewards in a cache are of the same model. Raises a ConfigError if not."""
        before = cache.get({"probe": _TEXTS})
        if before is not None and not agree(before, rewards, TOLERANCE):
            raise ConfigError(
                f"run.cache holds rewards of another model under the name {served_name(self._section)}: those of the "
                f"probe were {_numbers(before)}, and are {_numbers(rewards)} now. Give the new model another "
                "reward.version, or use another run.cache."
            )
        if before is None:
            cache.put({"probe": _TEXTS}, rewards)

    def _ask_one(self, url: str) -> tuple[list[float], str]:
        kind, about = KINDS[self._section.kind], served_name(self._section)
        client = Client(replace(service_of(self._section), urls=[url], deadline_s=_LIMIT_S, tries=3))
        try:
            form = replace(form_of(self._section), batch_rows=len(_TEXTS))
            rewards = ask_rows(client, Cache(None, {}), form, self._inputs)
            if kind.about is not None:
                path, read = kind.about
                [(_, said)] = client.ask(path, [None], lambda _, answer: read(answer))
                about = said.words if isinstance(said, Failed) else said
        finally:
            client.close()
        for reward in rewards:
            if isinstance(reward, Failed):
                raise ConfigError(f"reward.urls: the server refuses a short text of alignpot's own: {reward.words}.")
            if reward is None:
                raise ModelError(f"{url} gives no finite reward for a short text. See to the model.")
        return rewards, about


def _numbers(values: Sequence[float]) -> str:
    """Rewards for a message."""
    return shown("[" + ", ".join(f"{value:.4g}" for value in values) + "]", 200)
