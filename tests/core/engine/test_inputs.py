"""Inputs that clients shall round: the parameter of every strategy, what a plan says of it, and what runs store."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.checkpoints import open_checkpoint
from core.engine.plan import make_plan
from core.errors import RecipeError
from core.recipes import load
from core.recipes.toml import dumps, loads
from core.targets import get_target

DEMO = Path("resources/demo")


def errors(recipe: str, target: str) -> list[str]:
    with open_checkpoint(DEMO) as checkpoint:
        plan = make_plan(checkpoint, load(recipe), get_target(target))
    return [str(p) for p in plan.problems if p.severity == "error"]


def test_every_method_takes_it_and_recipes_keep_it() -> None:
    for text in ("int8(inputs=dynamic)", "int4-g32-asym+hqq(inputs=static)"):
        recipe = load(text)
        assert recipe.name == text
        assert loads(dumps(recipe)) == recipe
    assert load("int8(inputs=plain)").name == "int8"
    with pytest.raises(RecipeError, match="not one of plain, dynamic, static"):
        load("int8(inputs=8bit)")


@pytest.mark.parametrize("target", ["dense", "gptq", "bitsandbytes"])
def test_containers_without_a_word_for_it_refuse_by_name(target) -> None:
    name = {"gptq": "int8", "bitsandbytes": "nf4"}.get(target, "int8")
    found = errors(f"{name}(inputs=dynamic)", target)
    assert len(found) > 5
    assert all(".weight: " in line and f"{target} says nothing of inputs" in line for line in found)
    assert not errors(name, target)
