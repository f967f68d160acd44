"""Rewards of a function of the user's: what it is called with, and what happens to rows on which it fails.

It gets rows in batches. If a call fails, hangs or gives other than a number for each row, its rows are tried one by
one, and those that fail alone are dropped. A function that fails on the first rows one after another is broken itself,
and ends the run.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from pipeline.config import FunctionReward, Tokens
from pipeline.data.place import Place
from pipeline.drops import Reason
from pipeline.errors import AlignpotError, ConfigError
from pipeline.models.scores import Scores
from pipeline.rewards.backend import Backend, Dialogue, Scorer
from pipeline.rewards.callers import Caller, CallFailed, InProcess, Isolated
from pipeline.rewards.worker import Call, Row, module_digest
from pipeline.shown import quoted
from pipeline.sources.turns import message_of

_RESPONSE: Final = "response"
_FIRST_FAILURES: Final = 8

_log = logging.getLogger(__name__)


class FunctionBackend(Backend[FunctionReward]):
    """A function, named by its module."""

    def check(self, tokens: Tokens, columns: Sequence[str]) -> None:
        """Load the function once. Raises a ConfigError if there is none, or a column has the name of what it gets."""
        del tokens
        if _RESPONSE in columns:
            raise ConfigError(
                f"source.passthrough names {_RESPONSE}, which is what reward.function gets the answer as. Rename the "
                "column in the source, or leave it out."
            )
        self._caller().close()

    def fingerprint(self) -> dict[str, Any]:
        """Name, arguments, version and the digest of the module's file."""
        return self.section.fingerprint() | {"digest": module_digest(self.section.function)}

    def pinned(self, fingerprint: Mapping[str, Any]) -> FunctionReward:
        """The section with the digest of the module's file, which every worker compares."""
        return self.section.model_copy(update={"digest": fingerprint["digest"]})

    def scorer(self, cache: Place | None = None) -> "FunctionScorer":  # noqa: ARG002 - nothing costs money
        """The function, in its process."""
        return FunctionScorer(self.section, self._caller())

    def _caller(self) -> Caller:
        section = self.section
        call = Call(
            function=section.function,
            arguments=section.arguments,
            digest=section.digest,
            timeout_s=section.timeout_s,
        )
        return Isolated(call, section.num_threads) if section.isolate else InProcess(call)


class FunctionScorer(Scorer):
    """Calls a function on batches of rows."""

    def __init__(self, section: FunctionReward, caller: Caller) -> None:
        self._function, self._batch_rows, self._caller = section.function, section.batch_rows, caller
        self._told: set[str] = set()
        self._first_failures: int | None = 0  # in a row; None once a call has worked

    def score(self, groups: Sequence[Sequence[Dialogue]]) -> Scores:
        """The rewards. Raises an AlignpotError if the function fails on all of the first rows."""
        dialogues = [dialogue for group in groups for dialogue in group]
        found: list[float | Reason] = []
        for begin in range(0, len(dialogues), self._batch_rows):
            batch = dialogues[begin : begin + self._batch_rows]
            try:
                found += self._called(batch)
            except CallFailed as error:
                self._tell(f"{error} on {len(batch)} rows, which are tried one by one")
                found += [self._alone(dialogue) for dialogue in batch]
        return Scores(
            values=np.asarray([np.nan if isinstance(one, Reason) else one for one in found], dtype=np.float64),
            left_out={index: one for index, one in enumerate(found) if isinstance(one, Reason)},
        )

    def close(self) -> None:
        """End the process of the function."""
        self._caller.close()

    def _called(self, dialogues: Sequence[Dialogue]) -> list[float | Reason]:
        values = self._caller([_row(dialogue) for dialogue in dialogues])
        self._first_failures = None
        return [Reason.NO_REWARD if value is None else value for value in values]

    def _alone(self, dialogue: Dialogue) -> float | Reason:
        try:
            [found] = self._called([dialogue])
        except CallFailed as error:
            if self._first_failures is not None:
                self._first_failures += 1
                if self._first_failures == _FIRST_FAILURES:
                    raise AlignpotError(
                        f"reward.function {self._function} fails on each of the first {_FIRST_FAILURES} rows. On row "
                        f"{quoted(dialogue.id)} it {error}. Mend the function, and run again."
                    ) from None
            self._tell(f"{error} on row {quoted(dialogue.id)}, which is dropped, as is every other like it", str(error))
            return error.reason
        return found

    def _tell(self, words: str, kind: str = "batch") -> None:
        """Log something once for each kind."""
        if kind not in self._told:
            self._told.add(kind)
            _log.warning("reward.function %s %s", self._function, words)


def _row(dialogue: Dialogue) -> Row:
    """What the function gets. It may change it: no other row or call shares a part of it."""
    row = copy.deepcopy(dict(dialogue.columns))
    row |= {
        "id": dialogue.id,
        "prompt": [message_of(turn) for turn in dialogue.prompt],
        _RESPONSE: [message_of(turn) for turn in dialogue.answer],
    }
    return row if dialogue.tools is None else row | {"tools": dialogue.tools}
