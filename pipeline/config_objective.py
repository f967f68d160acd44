"""The objective section of the config: names, parameters and which objectives read a reference.

The one source of what an objective may be given and what is taken when it is left out; the formulas themselves are in
`pipeline.metrics.objectives`. Imports only pydantic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config_section import Section

ObjectiveName = Literal[
    "simpo",
    "alphapo",
    "cpo",
    "orpo",
    "rrhf",
    "slic-reference-free",
    "dpo",
    "dpo-norm",
    "ipo",
    "ipo-sum",
    "kto",
    "slic",
    "r-dpo",
    "dpop",
    "alpha-dpo",
    "f-dpo-forward-kl",
    "f-dpo-js",
]

Parameter = Literal["beta", "alpha", "penalty", "length_sign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveRule:
    """What one objective takes.

    reference: whether it reads log-probs of the reference.
    defaults: its parameters, each with the value taken when it is left out.
    """

    reference: bool
    defaults: Mapping[Parameter, float]


OBJECTIVE_RULES: Final[Mapping[ObjectiveName, ObjectiveRule]] = {
    "simpo": ObjectiveRule(reference=False, defaults={"beta": 2.0}),
    "alphapo": ObjectiveRule(reference=False, defaults={"beta": 2.5, "alpha": 0.25}),
    "cpo": ObjectiveRule(reference=False, defaults={"beta": 0.1}),
    "orpo": ObjectiveRule(reference=False, defaults={}),
    "rrhf": ObjectiveRule(reference=False, defaults={}),
    "slic-reference-free": ObjectiveRule(reference=False, defaults={}),
    "dpo": ObjectiveRule(reference=True, defaults={"beta": 2.0}),
    "dpo-norm": ObjectiveRule(reference=True, defaults={"beta": 5.0}),
    "ipo": ObjectiveRule(reference=True, defaults={}),
    "ipo-sum": ObjectiveRule(reference=True, defaults={}),
    "kto": ObjectiveRule(reference=True, defaults={"beta": 0.1}),
    "slic": ObjectiveRule(reference=True, defaults={"beta": 0.1}),
    "r-dpo": ObjectiveRule(reference=True, defaults={"beta": 0.1, "alpha": 0.05, "length_sign": 1}),
    "dpop": ObjectiveRule(reference=True, defaults={"beta": 0.1, "penalty": 50.0}),
    "alpha-dpo": ObjectiveRule(reference=True, defaults={"beta": 2.5, "alpha": 0.2}),
    "f-dpo-forward-kl": ObjectiveRule(reference=True, defaults={"beta": 0.1}),
    "f-dpo-js": ObjectiveRule(reference=True, defaults={"beta": 0.1}),
}

OBJECTIVES_WITH_REFERENCE: Final = frozenset(name for name, rule in OBJECTIVE_RULES.items() if rule.reference)

_NEGATIVE_ALPHA: Final = frozenset({"alphapo"})


def _rule_of(name: Any) -> ObjectiveRule | None:
    return next((rule for known, rule in OBJECTIVE_RULES.items() if known == name), None)


class Objective(Section):
    """The training objective, which gives the implicit reward its form.

    A parameter that is left out takes the objective's default, and one that it does not use is refused.
    """

    name: ObjectiveName = "simpo"
    beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    alpha: float | None = Field(default=None, allow_inf_nan=False)
    penalty: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """lambda of dpop."""
    length_sign: Literal[1, -1] | None = None
    """r-dpo: 1 adds alpha x tokens to a side's reward, -1 takes it away."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        name = data.get("name", "simpo")
        rule = _rule_of(name)
        given = {key: value for key, value in data.items() if value is not None or key not in get_args(Parameter)}
        return given if rule is None else {**rule.defaults, **given}

    @model_validator(mode="after")
    def _only_what_it_uses(self) -> "Objective":
        uses = OBJECTIVE_RULES[self.name].defaults
        unused = [name for name in _given(self) if name not in uses]
        if unused:
            takes = f"uses {' and '.join(uses)}" if uses else "takes no parameter"
            raise ValueError(f"{self.name} does not use {' and '.join(unused)}; leave it out ({self.name} {takes})")
        if self.alpha is not None and self.alpha < 0 and self.name not in _NEGATIVE_ALPHA:
            remedy = "; set length_sign: -1 instead" if "length_sign" in uses else ""
            raise ValueError(f"alpha of {self.name} must be at least 0{remedy}")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialise(self).items() if value is not None}

    @property
    def parameters(self) -> Mapping[str, float]:
        """The parameters that the objective uses, by name, defaults filled in."""
        return _given(self)


def _given(objective: Objective) -> dict[str, float]:
    values: dict[str, float | None] = {
        "beta": objective.beta,
        "alpha": objective.alpha,
        "penalty": objective.penalty,
        "length_sign": objective.length_sign,
    }
    return {name: value for name, value in values.items() if value is not None}
