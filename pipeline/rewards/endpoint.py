"""Rewards of a model behind a server. Dialogues are rendered and tokenised here, so that it reads what we say.

A server that takes texts gets one of which its tokenizer makes the same token ids; a dialogue that has none is dropped.

The rewards of a few texts of ours, the *probe*, are asked for at each start, on the driver and in each worker. They are
part of the fingerprint, so a run never goes on with another model, whatever its name.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from pipeline.config import EndpointReward, Tokens
from pipeline.data.place import Place
from pipeline.data.sealed import measured
from pipeline.drops import Reason
from pipeline.errors import AlignpotError, ConfigError
from pipeline.models.fingerprints import tokenizer_fingerprint
from pipeline.models.loading import load_tokenizer_alone
from pipeline.models.prompts import DialogueTokenizer
from pipeline.models.scores import Scores
from pipeline.models.templates import SET_REWARD_TEMPLATE, check_template
from pipeline.rewards.answers import ask_rows
from pipeline.rewards.backend import Backend, Dialogue, Scorer
from pipeline.rewards.cache import Cache
from pipeline.rewards.http import Client, Failed, headers_of
from pipeline.rewards.kinds import KINDS, form_of, inputs_of, served_name
from pipeline.rewards.probe import TOLERANCE, Probe, service_of
from pipeline.shown import quoted

_ENOUGH: Final = 8
"""First rewards that tell whether there is a sigmoid, and first rows that tell whether any works."""

_NO_TEXT: Final = Failed("there is no text of which the tokenizer makes the same token ids again")

_log = logging.getLogger(__name__)


class EndpointBackend(Backend[EndpointReward]):
    """A reward model that a server gives access to."""

    reads_ids: ClassVar[bool] = True

    def check(self, tokens: Tokens, columns: Sequence[str]) -> None:
        """Check key, tokenizer and template. Raises a ConfigError or ModelError."""
        del columns
        headers_of(service_of(self.section))
        tokenizer = load_tokenizer_alone(self.section)
        if tokens.template == "chat":
            check_template(tokenizer, self.section.chat_template, remedy=SET_REWARD_TEMPLATE)

    def fingerprint(self) -> dict[str, Any]:
        """The tokenizer, what the server says of its model, and the rewards of the probe.

        Raises a TemporaryError if no server answers.
        """
        found = self.section.fingerprint() | tokenizer_fingerprint(self.section.model, self.section.revision)
        rewards, said = Probe(self.section, load_tokenizer_alone(self.section)).ask()
        return found | {"served": said, "probe": measured(rewards, TOLERANCE)}

    def pinned(self, fingerprint: Mapping[str, Any]) -> EndpointReward:
        """The section with the tokenizer and the probe that were fingerprinted."""
        section = self.section
        model = str(Path(section.model).resolve()) if Path(section.model).is_dir() else section.model
        pins = {"model": model, "revision": fingerprint.get("revision", section.revision)}
        return section.model_copy(
            update={**pins, "served_name": served_name(section), "probe": tuple(fingerprint["probe"]["measured"])}
        )

    def scorer(self, cache: Place | None = None) -> "EndpointScorer":
        """A client, whose servers are asked for the probe once more."""
        return EndpointScorer(self.section, cache)

    def tokenizer(self, tokens: Tokens) -> DialogueTokenizer:
        """The reward model's own tokenizer and template."""
        return DialogueTokenizer(
            load_tokenizer_alone(self.section),
            self.section.max_length,
            tokens.date,
            text=self.section.chat_template,
            is_templated=tokens.template == "chat",
        )


class EndpointScorer(Scorer):
    """Asks a server for the rewards of dialogues.

    Raises a ConfigError if the server, or the cache, holds another model than the probe of the section says.
    """

    def __init__(self, section: EndpointReward, cache: Place | None) -> None:
        self._section = section
        tokenizer = load_tokenizer_alone(section)
        self._input_of = inputs_of(section, tokenizer)
        probe = Probe(section, tokenizer)
        rewards, _ = probe.ask()
        scope = {"kind": section.kind, "model": served_name(section), "version": section.version}
        self._cache = Cache(cache, scope)
        probe.check(self._cache, rewards)
        self._client = Client(service_of(section))
        self._first: list[float] | None = []  # rewards, until they show that there is no sigmoid
        self._has_worked = False
        self._told: set[str] = set()

    def score(self, groups: Sequence[Sequence[Dialogue]]) -> Scores:
        """The rewards.

        Raises a ConfigError if there is a sigmoid on them, a TemporaryError if the server does not answer in time, and
        an AlignpotError if it fails on each of the first rows.
        """
        dialogues = [dialogue for group in groups for dialogue in group]
        inputs = [None if one.ids is None else self._input_of(one.ids.tolist()) for one in dialogues]
        wanted = [one for one in inputs if one is not None]
        answers = iter(ask_rows(self._client, self._cache, form_of(self._section), wanted))
        found = [_NO_TEXT if one is None else next(answers) for one in inputs]
        failed = {index: one for index, one in enumerate(found) if isinstance(one, Failed)}
        for index, one in failed.items():
            self._tell(one.words, dialogues[index].id)
        values = [math.nan if one is None or isinstance(one, Failed) else one for one in found]
        self._check_first([value for value in values if math.isfinite(value)], failed, len(found))
        return Scores(values=np.asarray(values, np.float64), left_out=dict.fromkeys(failed, Reason.REWARD_ERROR))

    def close(self) -> None:
        """Write what is not in the cache yet, and close connections."""
        self._cache.flush()
        self._client.close()

    def _check_first(self, rewards: Sequence[float], failed: Mapping[int, Failed], num_rows: int) -> None:
        section = self._section
        self._has_worked = self._has_worked or bool(rewards)
        if not self._has_worked and failed and num_rows >= _ENOUGH:
            raise AlignpotError(
                f"reward: none of the first {num_rows} dialogues has a reward: {next(iter(failed.values())).words}. "
                "See to the server, and run again."
            )
        if self._first is None or section.bounded:
            return
        self._first += rewards
        if any(not 0 <= reward <= 1 for reward in self._first):
            self._first = None
        elif len(self._first) >= _ENOUGH:
            raise ConfigError(
                f"reward: the first {len(self._first)} rewards lie between 0 and 1, so the server has put a sigmoid on "
                f"them, which makes large margins small. {KINDS[section.kind].raw}. If the model's own rewards lie "
                "there, set reward.bounded: true."
            )

    def _tell(self, words: str, row: str) -> None:
        """Log something once for each kind."""
        if words not in self._told:
            self._told.add(words)
            _log.warning("reward: %s, row %s, which is dropped, as is every other like it", words, quoted(row))
