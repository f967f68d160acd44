"""What other code asks of a reward: checks, fingerprint, resources, tokens, and the scorer of dialogues.

The stages of `score` and self-play give a scorer the dialogues of a row together: both of a pair, or those of all K
responses to a prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from pipeline.config import Replicas, Tokens
from pipeline.data.place import Place
from pipeline.models.packing import Int32Array
from pipeline.models.prompts import DialogueTokenizer
from pipeline.models.scores import Scores
from pipeline.models.templates import Messages

S = TypeVar("S", bound=Replicas)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialogue:
    """A prompt with one answer.

    A back end that reads token ids gets `id` and `ids` alone; any other gets everything but `ids`.

    Attributes:
        id: of the row, for messages.
        ids: token ids of prompt and answer together.
        prompt: the turns before the answer.
        answer: the turns of the answer.
        tools: JSON text of the tool schemas.
        template_kwargs: JSON text of the row's own arguments for a chat template.
        columns: the further columns of the row.
    """

    id: str
    ids: Int32Array | None = None
    prompt: Messages = ()
    answer: Messages = ()
    tools: str | None = None
    template_kwargs: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class Scorer(ABC):
    """Gives every dialogue its reward, in the process that loaded it."""

    @abstractmethod
    def score(self, groups: Sequence[Sequence[Dialogue]]) -> Scores:
        """The reward of every dialogue, in the order of the groups; a group holds the dialogues of one row.

        Of a section with `heads`, a number for each head. A value that is not finite counts as no reward. Raises an
        AlignpotError if the rewards cannot be trusted.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Free what it holds, such as processes of its own."""


class Backend(ABC, Generic[S]):
    """A reward that alignpot computes. Its section reserves the resources of a replica."""

    reads_ids: ClassVar[bool] = False
    """Whether dialogues come as token ids, which the stage `tokenise` makes with `tokenizer`."""

    def __init__(self, section: S) -> None:
        self.section = section

    @property
    def compares(self) -> bool:
        """Whether it compares the two answers of a pair: its numbers are then their leads, and no rewards."""
        return False

    @abstractmethod
    def check(self, tokens: Tokens, columns: Sequence[str]) -> None:
        """Check all that can be checked before anything runs. columns: names of the further columns of the rows.

        Raises an AlignpotError if the reward cannot be used.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON-ready facts that change whenever a reward can. Raises an AlignpotError if something is missing."""

    @abstractmethod
    def pinned(self, fingerprint: Mapping[str, Any]) -> S:
        """The section as workers read it: what was fingerprinted and nothing else."""

    @abstractmethod
    def scorer(self, cache: Place | None = None) -> Scorer:
        """Load it. Called once in every process that scores. cache: where answers that cost money are kept."""

    def env(self) -> dict[str, str]:
        """Environment variables that a process which scores must have from its start."""
        return {}

    def tokenizer(self, tokens: Tokens) -> DialogueTokenizer:
        """Makes the token ids of dialogues, if it reads them."""
        raise NotImplementedError
