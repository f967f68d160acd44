"""Rewards of a sequence classifier, run by alignpot's own engine in the process that scores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pipeline.config import ClassifierReward, Tokens, VllmReward, names_of
from pipeline.data.place import Place
from pipeline.errors import ModelError
from pipeline.models.adapters import Adapter
from pipeline.models.fingerprints import model_fingerprint, pinned
from pipeline.models.loading import load_configuration, load_tokenizer
from pipeline.models.packing import Completion, Group
from pipeline.models.prompts import DialogueTokenizer
from pipeline.models.scores import Scores, wrong_number
from pipeline.models.templates import SET_REWARD_TEMPLATE, check_template
from pipeline.rewards.backend import Backend, Dialogue, Scorer

if TYPE_CHECKING:  # this loads torch
    from pipeline.models.rewards import ClassifierEngine
    from pipeline.models.vllm_rewards import VllmRewardEngine

R = TypeVar("R", ClassifierReward, VllmReward)


class ClassifierBackend(Backend[R]):
    """A reward model with one logit or named heads, or one that returns `.score`."""

    reads_ids: ClassVar[bool] = True

    def check(self, tokens: Tokens, columns: Sequence[str]) -> None:
        """Check files, tokenizer and template, without loading weights. Raises a ModelError."""
        del columns
        tokenizer = load_tokenizer(self.section)
        if tokens.template == "chat":
            check_template(tokenizer, self.section.chat_template, remedy=SET_REWARD_TEMPLATE)
        config = load_configuration(self.section)
        own_code = "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
        adapter = None if self.section.adapter is None else Adapter(self.section)
        num_logits = (None if adapter is None else adapter.num_labels) or config.num_labels
        wanted = len(names_of("", self.section))
        if num_logits != wanted and not own_code:  # what code of its own gives is seen when it runs
            raise ModelError(wrong_number(self.section.model, num_logits, wanted))

    def fingerprint(self) -> dict[str, Any]:
        """Digests or commits of its files, with the decisive keys."""
        return model_fingerprint(self.section)

    def pinned(self, fingerprint: Mapping[str, Any]) -> R:
        """The section at the commits that were fingerprinted."""
        return pinned(self.section, fingerprint)

    def scorer(self, cache: Place | None = None) -> "ClassifierScorer":  # noqa: ARG002 - nothing costs money
        """The model with its weights."""
        from pipeline.models.rewards import ClassifierEngine

        return ClassifierScorer(ClassifierEngine.load(self.section))

    def tokenizer(self, tokens: Tokens) -> DialogueTokenizer:
        """The reward model's own tokenizer and template."""
        return DialogueTokenizer(
            load_tokenizer(self.section),
            self.section.max_length,
            tokens.date,
            text=self.section.chat_template,
            is_templated=tokens.template == "chat",
        )


class ClassifierScorer(Scorer):
    """Rewards of an engine, which is compared with the model's own forward on the first rows."""

    def __init__(self, engine: "ClassifierEngine | VllmRewardEngine") -> None:
        self._engine = engine
        self._checked = False

    def score(self, groups: Sequence[Sequence[Dialogue]]) -> Scores:
        """The rewards. Raises a ModelError if those of the first rows are not the model's own."""
        from pipeline.models.agreement import check_engine

        wanted = completions(groups)
        if wanted and not self._checked:
            check_engine(self._engine, wanted, [group[0].id for group in groups], "reward")
            self._checked = True
        return self._engine.score(wanted)

    def close(self) -> None:
        """Free what the engine holds beside torch modules, such as processes of its own."""
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()


def completions(groups: Sequence[Sequence[Dialogue]]) -> list[Group]:
    """Dialogues as an engine reads them: those of a row share the computation of their prompt."""
    return [[Completion(ids=one.ids, start=0) for one in group if one.ids is not None] for group in groups]
