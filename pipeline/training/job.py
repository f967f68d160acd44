"""What one training does, as a value that travels to another process as JSON. Imports no trainer and no torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.config import Objective, Storage, Tokens, TorchModel, Train
from pipeline.errors import ConfigError
from pipeline.metrics import OBJECTIVES

SUMMARY_FILE: Final = "training.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """One training.

    Attributes:
        datasets: `save_to_disk` folders or URLs of them, such as the folder hf of subsets, in the order of their rows;
            a pair that is in several is taken once, as it stands in the first.
        policy: the model to train; its dtype is that of the saved weights.
        reference: the reference model, where one is to be run; None means the policy as it is before training.
        output: folder of the trained model, with weights, tokenizer and `training.json`.
        settings: method, sizes and rates.
        objective: gives beta where the settings do not.
        tokens: what the pairs were scored with; training tokenises by TRL's rule, whatever the preset.
        storage: how to reach datasets on object stores.
        merge: whether a LoRA adapter is merged into the model in the end; else it is saved alone.
    """

    datasets: tuple[str, ...]
    policy: TorchModel
    reference: TorchModel | None = None
    output: Path
    settings: Train
    objective: Objective = field(default_factory=Objective)
    tokens: Tokens = field(default_factory=Tokens)
    storage: Storage = field(default_factory=Storage)
    merge: bool = True

    def to_json(self) -> str:
        """All of it as JSON text."""
        sections = {name: getattr(self, name) for name in _SECTIONS}
        plain = {
            name: None if section is None else section.model_dump(mode="json") for name, section in sections.items()
        }
        own = {"datasets": list(self.datasets), "output": str(self.output), "merge": self.merge}
        return json.dumps({**own, **plain}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "TrainJob":
        """The job of a text that `to_json` gave, or that a person wrote.

        Raises:
            ConfigError: it is no JSON, lacks a key, or has one that is unknown or does not fit.
        """
        try:
            given: dict[str, Any] = dict(json.loads(text))
            unknown = sorted(set(given) - {*_SECTIONS, "datasets", "output", "merge"})
            if unknown:
                raise ConfigError(f"The training job has unknown keys {unknown}.")
            sections = {
                name: kind.model_validate(given[name])
                for name, kind in _SECTIONS.items()
                if given.get(name) is not None
            }
            datasets, output, merge = tuple(given["datasets"]), Path(given["output"]), bool(given.get("merge", True))
            return cls(datasets=datasets, output=output, merge=merge, **sections)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"The training job cannot be read: {error}") from None

    @property
    def beta(self) -> float:
        """That of the settings, else of the objective.

        Raises:
            ConfigError: neither has one.
        """
        beta = self.settings.beta if self.settings.beta is not None else self.objective.beta
        if beta is None:
            usual = OBJECTIVES["simpo" if self.settings.method == "simpo" else "dpo"].defaults["beta"]
            raise ConfigError(
                f"Objective {self.objective.name} has no beta, and training needs one: set train.beta, such as {usual}."
            )
        return beta

    @property
    def on_cpu(self) -> bool:
        """Whether no GPU is asked for."""
        return self.settings.num_gpus == 0


_SECTIONS: dict[str, Any] = {
    "policy": TorchModel,
    "reference": TorchModel,
    "settings": Train,
    "objective": Objective,
    "tokens": Tokens,
    "storage": Storage,
}
