"""From what a person types to a recipe."""

from __future__ import annotations

import pytest

from core.errors import RecipeError
from core.formats import FORMATS
from core.recipes import PRESETS, load, parse_strategy
from core.recipes.model import Match, Recipe, Rule, Strategy
from core.recipes.toml import dumps, loads


@pytest.mark.parametrize("name", ["Q4_K_M", "q4_k_m", "Q4_k_M", " Q4_K_M "])
def test_presets_in_any_case(name: str) -> None:
    recipe = load(name)
    assert recipe.name == "Q4_K_M"
    assert recipe.rules == (Rule(Match(), preset="Q4_K_M"),)


@pytest.mark.parametrize("name", ["q4_k", "Q4_K", "int4-g128", "INT4-G128", "int5-g48-asym"])
def test_a_format_is_one_rule_for_everything(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name.lower()
    assert recipe.rules == (Rule(Match(), Strategy(name.lower())),)


def test_case_tells_a_mixture_from_its_format() -> None:
    assert load("Q4_0").rules[0].preset == "Q4_0"
    assert load("q4_0").rules[0].strategy == Strategy("q4_0")


def test_the_method_nearest_may_be_spelled_out() -> None:
    assert load("Q4_K_M+nearest") == load("Q4_K_M")
    assert load("q4_k + nearest") == load("q4_k")


def test_everything_listed_loads() -> None:
    for preset in PRESETS:
        if preset.available:
            assert load(preset.name).rules[0].preset == preset.name
    for known in FORMATS:
        if known.encodable:
            assert load(known.name).rules[0].strategy == Strategy(known.name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Q4KM", "unknown recipe 'Q4KM'; did you mean Q4_K_M"),
        ("int9", "unknown recipe 'int9'; did you mean int"),
        ("zzzzzz", "unknown recipe 'zzzzzz'; give a preset, a format, or a path to a .toml file; `formats` lists"),
        ("", "recipe: '' is not a strategy"),
        ("+nearest", "recipe: '+nearest' is not a strategy"),
        ("q4_k+magic", "q4_k+magic: unknown method 'magic'"),
        ("Q4_K_M+magic", "Q4_K_M+magic: unknown method 'magic'"),
        ("keep", "unknown recipe 'keep'"),
        ("q4_k(", "recipe: 'q4_k(' is not a strategy"),
        ("q4_k()", "recipe: 'q4_k()' is not a strategy"),
        ("q4_k(effort)", "recipe: 'q4_k(effort)' is not a strategy"),
        ("q4_k(effort=exact, effort=best)", "recipe: 'q4_k(effort=exact, effort=best)' is not a strategy"),
        ("q4_k(effort=exact)x", "recipe: 'q4_k(effort=exact)x' is not a strategy"),
        ("q4_k(effort=utmost)", "q4_k(effort=utmost): effort is 'utmost', not one of auto, exact, best"),
        ("Q4_K_M(damp=1)", "Q4_K_M(damp=1): unknown parameter 'damp'"),
        ("int4-g128(effort=best)", "int4-g128(effort=best): int4-g128: no effort best here, only exact"),
        ("recipes/none.toml", "recipes/none.toml: cannot be read"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(text)
    assert str(error.value).replace("\\", "/").startswith(message)


def test_formats_that_cannot_be_written_are_refused() -> None:
    readable = [f.name for f in FORMATS if not f.encodable]
    for name in readable:
        with pytest.raises(RecipeError, match="can be read, but not written"):
            load(name)
    for preset in PRESETS:
        if not preset.available:
            with pytest.raises(RecipeError, match="cannot be written yet"):
                load(preset.name)


def test_strategies_in_short() -> None:
    assert parse_strategy("Q4_K") == Strategy("q4_k")
    assert parse_strategy("keep") == Strategy("keep")
    assert str(parse_strategy("int4-g128+nearest")) == "int4-g128"
    exact = parse_strategy("Q4_K( effort = exact )")
    assert exact == parse_strategy("q4_k+nearest(effort=exact)") == Strategy("q4_k", params=(("effort", "exact"),))
    assert parse_strategy("q4_k(effort=auto)") == Strategy("q4_k")
    hqq = parse_strategy("int4-g128-asym+hqq(p=0.5,refine_scale=false, iterations=7)")
    assert hqq.params == (("p", 0.5), ("iterations", 7), ("refine_scale", False))
    for strategy in (exact, hqq):
        assert parse_strategy(str(strategy)) == strategy
    assert str(exact) == "q4_k(effort=exact)"
    with pytest.raises(RecipeError, match="rule 3: unknown format 'q5'"):
        parse_strategy("q5", "rule 3")


def test_a_recipe_is_equal_to_itself_loaded_again() -> None:
    assert load("q4_k") == load("q4_k") == Recipe("q4_k", (Rule(Match(), Strategy("q4_k")),), "every tensor that fits")


def test_a_preset_takes_parameters() -> None:
    recipe = load("q4_k_m(effort=exact)")
    assert recipe.name == "Q4_K_M(effort=exact)"
    assert recipe.rules == (Rule(Match(), preset="Q4_K_M", params=(("effort", "exact"),)),)
    assert loads(dumps(recipe)).rules == recipe.rules
    assert loads('quantbench = 1\n[[rule]]\npreset = "Q4_K_M(effort=exact)"').rules == recipe.rules
