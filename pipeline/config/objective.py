"""The objective section: which training objective gives the implicit reward its form.

Names, parameters and their defaults stand with the formulas in `pipeline.metrics.objectives`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config.section import OneOf, Section
from pipeline.metrics.objectives import OBJECTIVES


class Objective(Section):
    """The training objective, which gives the implicit reward its form.

    A parameter that is left out takes the objective's default; one that the objective does not use is refused.
    `alignpot objectives` lists formulas, parameters, defaults and sources.
    """

    name: Annotated[str, OneOf(OBJECTIVES)] = "simpo"
    """The objective that the trainer will use."""
    beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Scale of the implicit reward. Default: the objective's own."""
    alpha: float | None = Field(default=None, allow_inf_nan=False)
    """alpha of alphapo, r-dpo and alpha-dpo; at least 0, except for alphapo. Default: the objective's own."""
    penalty: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """lambda of dpop. Default: the objective's own."""
    length_sign: Literal[1, -1] | None = None
    """For r-dpo: 1 adds alpha x tokens to the reward of a side, -1 subtracts it. Default: 1."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        name = data.get("name", "simpo")
        definition = OBJECTIVES.get(name) if isinstance(name, str) else None
        parameters = {*cls.model_fields} - {"name"}
        given = {key: value for key, value in data.items() if value is not None or key not in parameters}
        return given if definition is None else {**definition.defaults, **given}

    @model_validator(mode="after")
    def _only_what_it_uses(self) -> "Objective":
        definition = OBJECTIVES[self.name]
        uses = definition.defaults
        unused = [name for name in self.parameters if name not in uses]
        if unused:
            takes = f"uses {' and '.join(uses)}" if uses else "takes no parameter"
            raise ValueError(f"{self.name} does not use {' and '.join(unused)}; leave it out ({self.name} {takes})")
        if self.alpha is not None and self.alpha < 0 and not definition.negative_alpha:
            remedy = "; set length_sign: -1 instead" if "length_sign" in uses else ""
            raise ValueError(f"alpha of {self.name} must be at least 0{remedy}")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialise(self).items() if value is not None}

    @property
    def parameters(self) -> Mapping[str, float]:
        """The parameters that the objective uses, by name, defaults filled in."""
        return {name: value for name, value in self if name != "name" and value is not None}

    @property
    def reads_reference(self) -> bool:
        """Whether the implicit reward is computed from log-probs of a reference."""
        return OBJECTIVES[self.name].reads_reference
