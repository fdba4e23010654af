from __future__ import annotations

import pytest

from core import errors
from core.errors import Cancelled, WorkbenchError, one_line
from core.parameters import Parameter, RecipeError, check_parameters


def test_one_line_even_from_foreign_text() -> None:
    error = WorkbenchError("two\nlines", "try\tthis", "a/file")
    assert str(error) == "a/file: two lines; try this"
    assert one_line(ValueError("a\n b")) == "ValueError: a b"
    assert one_line(ValueError()) == "ValueError"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    named = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    assert named - {"Cancelled"} == {w for w in errors.__doc__.replace("│", " ").split() if w in named} - {"Cancelled"}
    assert not issubclass(Cancelled, WorkbenchError)


PARAMETERS = (
    Parameter("damp", "float", 0.01, "damping", "", minimum=0, maximum=1),
    Parameter("steps", "int", 20, "steps", "", minimum=1),
    Parameter("order", "choice", "rows", "order", "", choices=("rows", "energy")),
    Parameter("fast", "bool", False, "fast", ""),
)


def test_defaults_are_filled_in() -> None:
    assert check_parameters(PARAMETERS, {"steps": 3.0}, "here") == {
        "damp": 0.01,
        "steps": 3,
        "order": "rows",
        "fast": False,
    }


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"damping": 1}, "unknown parameter 'damping'"),
        ({"damp": 2}, "damp is 2, must be ≥ 0 and ≤ 1"),
        ({"damp": True}, "not a number"),
        ({"steps": 1.5}, "not a whole number"),
        ({"steps": 0}, "must be ≥ 1"),
        ({"order": "columns"}, "not one of rows, energy"),
        ({"fast": 1}, "not true or false"),
        ({"damp": float("nan")}, "must be"),
    ],
)
def test_bad_values_are_named(given: dict, text: str) -> None:
    with pytest.raises(RecipeError, match=text.replace("(", r"\(")) as caught:
        check_parameters(PARAMETERS, given, "rule 2")
    assert str(caught.value).startswith("rule 2: ")
