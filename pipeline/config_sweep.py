"""The sweep section of the config: several selections of one scored dataset, found in the same passes.

Each variant overrides keys of the objective, metric and select sections, and is written to a folder of its name.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails

from pipeline.config_section import Section

T = TypeVar("T")


class Variant(Section):
    """One selection of a sweep."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the subset, below output.path."""
    objective: dict[str, Any] = Field(default_factory=dict)
    """Another name leaves all parameters of the base behind."""
    metric: dict[str, Any] = Field(default_factory=dict)
    select: dict[str, Any] = Field(default_factory=dict)

    def applied(self, base: dict[str, Any], validate: Callable[[dict[str, Any]], T]) -> T:
        """`base`, a dump of the config, with the variant's keys over it and an output folder of its own; validated.

        base: its select section holds the keys that the user gave, and no more.

        Raises:
            ValidationError: with `sweep` and the variant's name before the keys.
        """
        own = {
            **base,
            "objective": self.objective if "name" in self.objective else {**base["objective"], **self.objective},
            "metric": {**base["metric"], **self.metric},
            "select": {**_without_number(base["select"], self.select), **self.select},
        }
        if base["output"] is not None:
            own["output"] = {**base["output"], "path": f"{base['output']['path'].rstrip('/')}/{self.name}"}
        try:
            return validate(own)
        except ValidationError as error:
            raise _of_variant(self.name, error) from None


def _without_number(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The rule of how many rows to keep goes where the variant gives one of its own."""
    left_out: set[str] = set()
    if given.keys() & {"fraction", "k", "stats_from"}:
        left_out = {"fraction", "k", "stats_from"}
    if "stats_from" in given:
        left_out |= {"min_score", "max_score"}
    return {key: value for key, value in base.items() if key not in left_out}


def _of_variant(name: str, error: ValidationError) -> ValidationError:
    problems = [
        InitErrorDetails(
            type=problem["type"],
            loc=("sweep", name, *problem["loc"]),
            input=problem["input"],
            ctx=problem.get("ctx", {}),
        )
        for problem in error.errors(include_url=False)
    ]
    return ValidationError.from_exception_data(error.title, problems)
