"""Rewards of a chat model as judge: the answers of a pair compared in both orders, or each answer rated by itself.

For a pair the judge is asked twice. `lead_chosen` is how far the answer that stands first leads where that is chosen,
`lead_rejected` the same where it is rejected. With v = 1 for the verdict "first", -1 for "second" and 0 for a tie,

    logprobs    lead = sum over the verdicts of v P(verdict), that is P(first) - P(second)
    votes       lead = mean of v over the votes

and `metrics.margins` makes the margin of both leads. A rating is the mean of the votes, or the mean of all ratings by
their probabilities, sum r P(r) / sum P(r). Verdicts that are not among the likeliest tokens that the server gives have
probability 0.

An answer in which no verdict can be read is asked for again as often as the prompt says. Then its row is dropped.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

import numpy as np

from pipeline.config import JudgeReward, Tokens, VllmJudgeReward
from pipeline.data.place import Place
from pipeline.data.sealed import digest
from pipeline.drops import Reason
from pipeline.errors import AlignpotError, ConfigError
from pipeline.models.scores import Scores
from pipeline.rewards.answers import Asked, Form, ask_rows
from pipeline.rewards.backend import Backend, Dialogue, Scorer
from pipeline.rewards.cache import Cache
from pipeline.rewards.http import Client, Failed, Service, headers_of
from pipeline.rewards.judge_prompts import Preset, Prompt
from pipeline.rewards.probe import service_of
from pipeline.shown import quoted

_NUM_LIKELIEST: Final = 20  # most that servers give
_ENOUGH: Final = 8
"""First rows that tell whether any works."""

_log = logging.getLogger(__name__)

J = TypeVar("J", JudgeReward, VllmJudgeReward)


class JudgingBackend(Backend[J], Generic[J]):
    """A judge, wherever it runs."""

    @property
    def compares(self) -> bool:
        """Whether it compares the two answers of a pair."""
        return self.section.style == "pairwise"

    def check(self, tokens: Tokens, columns: Sequence[str]) -> None:
        """Check the prompt. Raises a ConfigError if it cannot be used."""
        del tokens, columns
        preset = Prompt(self.section).preset
        if self.section.votes > 1 and not (preset.parameters | self.section.parameters).get("temperature"):
            raise ConfigError(
                f"reward.votes: {self.section.votes} verdicts at temperature 0 are one and the same. Set "
                "reward.parameters: {temperature: 0.7}, or reward.votes: 1."
            )

    def prompt_fingerprint(self) -> dict[str, Any]:
        """Version and digest of the prompt."""
        prompt = Prompt(self.section)
        said = json.dumps([prompt.text, prompt.rubric, prompt.preset.parameters], sort_keys=True)
        known = {"version": prompt.preset.version, "digest": digest(said.encode())}
        return {"prompt": {"name": self.section.prompt, **known}}


class JudgeBackend(JudgingBackend[JudgeReward]):
    """A judge that a server gives access to."""

    def check(self, tokens: Tokens, columns: Sequence[str]) -> None:
        """Check key and prompt. Raises a ConfigError if one cannot be used."""
        headers_of(_service(self.section))
        super().check(tokens, columns)

    def fingerprint(self) -> dict[str, Any]:
        """The section and the prompt."""
        return self.section.fingerprint() | self.prompt_fingerprint()

    def pinned(self, fingerprint: Mapping[str, Any]) -> JudgeReward:
        """The section, which holds all."""
        del fingerprint
        return self.section

    def scorer(self, cache: Place | None = None) -> "JudgeScorer":
        """A client."""
        section = self.section
        asked = {"judge": section.model, "version": section.version, "style": section.style, "prompt": section.prompt}
        scope = {**asked, "read": Prompt(section).preset.version}
        return JudgeScorer(section, Client(_service(section)), Cache(cache, scope))


class JudgeScorer(Scorer):
    """Asks a judge. Of a pairwise one the values of a pair are the leads of its two answers."""

    def __init__(self, section: JudgeReward | VllmJudgeReward, judge: Asked, cache: Cache) -> None:
        self._section, self._prompt = section, Prompt(section)
        self._judge, self._cache = judge, cache
        preset = self._prompt.preset
        self._form: Form[dict[str, Any]] = Form(
            path="/chat/completions", body_of=lambda rows: rows[0], read=lambda answer: [self._read(answer)]
        )
        by_logprobs = section.verdict == "logprobs"
        own: dict[str, Any] = {"logprobs": True, "top_logprobs": _NUM_LIKELIEST} if by_logprobs else {}
        if by_logprobs and preset.is_first:
            own["max_tokens"] = 1
        self._parameters = {"model": section.model, **preset.parameters, **own, **section.parameters}
        self._has_worked = False
        self._told: set[str] = set()

    def score(self, groups: Sequence[Sequence[Dialogue]]) -> Scores:
        """The leads or ratings.

        Raises a ConfigError if the server gives no log-probabilities where they are wanted, a TemporaryError if it does
        not answer in time, and an AlignpotError if it fails on each of the first rows.
        """
        asked = [answers for group in groups for answers in self._orders(group)]
        messages = list(map(self._prompt.messages, asked))
        votes: list[list[float]] = [[] for _ in asked]
        failed: dict[int, Failed] = {}
        pending = [(index, vote) for index in range(len(asked)) for vote in range(self._section.votes)]
        for _ in range(self._prompt.preset.tries):
            bodies = [self._body(messages[index], seed) for index, seed in pending]
            answers = ask_rows(self._judge, self._cache, self._form, bodies)
            again = []
            for (index, seed), answer in zip(pending, answers, strict=True):
                if isinstance(answer, Failed):
                    failed[index] = answer
                elif answer["verdict"] is None:
                    again.append((index, seed + self._section.votes))
                else:
                    votes[index].append(answer["verdict"])
            pending = again
        self._tell([(asked[index][0].id, one.words) for index, one in failed.items()], len(asked))
        reasons = {
            index: Reason.REWARD_ERROR if index in failed else Reason.NO_VERDICT
            for index, found in enumerate(votes)
            if index in failed or not found
        }
        values = [math.nan if index in reasons else math.fsum(found) / len(found) for index, found in enumerate(votes)]
        return Scores(values=np.asarray(values, dtype=np.float64), left_out=reasons)

    def close(self) -> None:
        """Write what is not in the cache yet, and close connections or end the engine."""
        self._cache.flush()
        self._judge.close()

    def _orders(self, group: Sequence[Dialogue]) -> list[Sequence[Dialogue]]:
        if self._section.style == "pointwise":
            return [[one] for one in group]
        chosen, rejected = group
        return [[chosen, rejected], [rejected, chosen]]

    def _body(self, messages: Sequence[Mapping[str, str]], seed: int) -> dict[str, Any]:
        """A request. The first vote has no seed: not every server knows them."""
        body = {**self._parameters, "messages": messages, "seed": seed or None}
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, answer: Any) -> dict[str, float | None]:
        """The number of the verdict in an answer, None if there is none. It is cached, and the text is not."""
        [choice] = answer["choices"]
        preset, text = self._prompt.preset, choice["message"].get("content") or ""
        if self._section.verdict == "logprobs":
            tokens = (choice.get("logprobs") or {}).get("content")
            if tokens is None:
                raise ConfigError(
                    "reward.urls: the server gives no log-probabilities with its answers. Set reward.verdict: votes, "
                    "or serve the model by one that does, such as vLLM."
                )
            likely = _first(tokens, preset) if preset.is_first else _at_verdict(tokens, text, preset)
            return {"verdict": _expected(likely, is_rating=self._section.style == "pointwise")}
        is_cut = choice.get("finish_reason") == "length" and not preset.is_first
        found = None if is_cut else preset.label(text)
        return {"verdict": None if found is None else preset.values[found[0]]}

    def _tell(self, failed: Sequence[tuple[str, str]], num_asked: int) -> None:
        """Log each kind of failure once. Raises an AlignpotError if every request up to here failed."""
        self._has_worked = self._has_worked or len(failed) < num_asked
        if not self._has_worked and num_asked >= _ENOUGH:
            raise AlignpotError(
                f"reward: the judge fails on each of the first {num_asked} requests: {failed[0][1]}. See to the judge "
                "and to reward.parameters, and run again."
            )
        for row, words in failed:
            if words not in self._told:
                self._told.add(words)
                _log.warning("reward: %s, row %s, which is dropped, as is every other like it", words, quoted(row))


def _service(section: JudgeReward) -> Service:
    """The service of a section. A URL without a path gets the one that is usual."""
    urls = [url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1" for url in section.urls]
    return replace(service_of(section), urls=urls)


Likely = Mapping[float, float]
"""Probabilities of the numbers that verdicts stand for."""


def _first(tokens: Sequence[Mapping[str, Any]], preset: Preset) -> Likely:
    """Of an answer that is a verdict alone."""
    return _summed(_likeliest(tokens[0]), str.strip, preset) if tokens else {}


def _at_verdict(tokens: Sequence[Mapping[str, Any]], text: str, preset: Preset) -> Likely:
    """Of an answer that ends with a verdict: the tokens in its place."""
    found = preset.label(text)
    pieces = [_bytes_of(token) for token in tokens]
    begin = b"".join(pieces).rfind(
        text.encode(errors="replace")
    )  # before it there may be thoughts, after it an end of turn
    if found is None or begin < 0:
        return {}
    at = begin + len(text[: found[1]].encode(errors="replace"))
    for token, piece in zip(tokens, pieces, strict=True):
        if at < len(piece):
            ends = [end.decode(errors="replace") for end in (piece[:at], piece[at + 1 :])]
            return _summed(_likeliest(token), partial(_between, *ends), preset)
        at -= len(piece)
    return {}


def _between(head: str, tail: str, token: str) -> str:
    return token[len(head) : len(token) - len(tail)] if token.startswith(head) and token.endswith(tail) else ""


def _likeliest(token: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities of the token and of those that could have stood in its place."""
    return {each["token"]: float(each["logprob"]) for each in (token, *token.get("top_logprobs", ()))}


def _summed(likeliest: Mapping[str, float], label_of: Callable[[str], str], preset: Preset) -> Likely:
    found: dict[float, float] = {}
    for token, logprob in sorted(likeliest.items()):
        value = preset.values.get(label_of(token))
        if value is not None:
            found[value] = found.get(value, 0.0) + math.exp(min(logprob, 0.0))
    return found


def _expected(likely: Likely, *, is_rating: bool) -> float | None:
    total = math.fsum(likely.values())
    if not total > 0:
        return None
    found = math.fsum(value * probability for value, probability in likely.items())
    return found / total if is_rating else found


def _bytes_of(token: Mapping[str, Any]) -> bytes:
    given = token.get("bytes")
    return str(token["token"]).encode() if given is None else bytes(given)
