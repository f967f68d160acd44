"""The sweep section: several selections of one scored dataset, found in the same passes."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails

from pipeline.config.section import LAYOUT, Section

T = TypeVar("T")


class Variant(Section):
    """One selection of a sweep: keys of objective, metric and select that differ from those sections."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", json_schema_extra=LAYOUT)
    """Folder of this subset, below output.path."""
    objective: dict[str, Any] = Field(default_factory=dict)
    """Keys of the objective. With a name, no parameter of the objective section is taken over."""
    metric: dict[str, Any] = Field(default_factory=dict)
    """Keys of the metric."""
    select: dict[str, Any] = Field(default_factory=dict)
    """Keys of select. `fraction`, `k` and `stats_from` replace each other."""

    def applied(self, base: dict[str, Any], validate: Callable[[dict[str, Any]], T]) -> T:
        """`base` with the variant's keys over it and an output folder of its own, validated.

        base: a dump of the config, whose select section holds only the keys that the user gave.

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
            problems = [
                InitErrorDetails(
                    type=problem["type"],
                    loc=("sweep", self.name, *problem["loc"]),
                    input=problem["input"],
                    ctx=problem.get("ctx", {}),
                )
                for problem in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(error.title, problems) from None


def _without_number(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The base's select section without the number of rows where the variant gives its own."""
    left_out: set[str] = set()
    if given.keys() & {"fraction", "k", "stats_from"}:
        left_out = {"fraction", "k", "stats_from"}
    if "stats_from" in given:
        left_out |= {"min_score", "max_score"}
    return {key: value for key, value in base.items() if key not in left_out}
