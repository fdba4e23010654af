"""The record that declares a parameter once: the form in the window, the recipe file, `--help` and the docs read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tunable number, choice or switch of a method or a format.

    kind     "int", "float", "bool" or "choice"
    minimum, maximum  inclusive bounds for numbers, None where open
    """

    key: str
    kind: str
    default: Any
    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any, where: str) -> Any:
        """The value in its own type. Raises RecipeError naming key, bounds and what was given."""
        if self.kind == "bool":
            if isinstance(value, bool):
                return value
            raise RecipeError(f"{self.key} is {value!r}, not true or false", where=where)
        if self.kind == "choice":
            if value in self.choices:
                return value
            raise RecipeError(f"{self.key} is {value!r}, not one of {', '.join(self.choices)}", where=where)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecipeError(f"{self.key} is {value!r}, not a number", where=where)
        if self.kind == "int" and value != int(value):
            raise RecipeError(f"{self.key} is {value!r}, not a whole number", where=where)
        low = "" if self.minimum is None else f"≥ {self.minimum:g}"
        high = "" if self.maximum is None else f"≤ {self.maximum:g}"
        if (self.minimum is not None and not value >= self.minimum) or (
            self.maximum is not None and not value <= self.maximum
        ):
            bounds = " and ".join(filter(None, (low, high)))
            raise RecipeError(f"{self.key} is {value!r}, must be {bounds}", where=where)
        return int(value) if self.kind == "int" else float(value)


# What happens to the inputs of a layer, beside what happens to its weights. Every method takes it, containers with a
# place for it say so to their clients.
PLAIN, DYNAMIC, STATIC = "plain", "dynamic", "static"
INPUTS = Parameter(
    "inputs",
    "choice",
    PLAIN,
    "Inputs",
    "How clients round what comes into the layer, in containers that say so: plain: not at all; dynamic: with a scale "
    "found as it comes; static: with a scale from calibration.",
    choices=(PLAIN, DYNAMIC, STATIC),
)


def check_parameters(declared: tuple[Parameter, ...], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All parameters with defaults filled in. Raises RecipeError on an unknown key or a value out of bounds."""
    known = {p.key: p for p in declared}
    for key in given:
        if key not in known:
            names = ", ".join(known) or "none"
            raise RecipeError(f"unknown parameter {key!r}", f"known here: {names}", where)
    return {k: p.check(given.get(k, p.default), where) for k, p in known.items()}
