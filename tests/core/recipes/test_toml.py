"""Recipe files: what is read, what is refused and how, and that writing is the inverse of reading."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import RecipeError
from core.formats import FORMATS
from core.recipes import PRESETS, load, load_file
from core.recipes.model import KEEP, Match, Recipe, Rule, Strategy
from core.recipes.toml import dumps, loads
from core.roles import ROLES

GOOD = """
quantbench = 1
name = "small but careful"
comment = "for the edge box"

[[rule]]
role = ["v", "down"]
layers = [0, 3]
strategy = "q6_k"
note = "early layers hurt"

[[rule]]
name = "*.o_proj.weight"
dtype = ["bf16"]
ndim = 2
min_columns = 256
min_numel = 65536
strategy = { format = "int4-g128", method = "nearest" }

[[rule]]
names = ["lm_head.weight"]
strategy = "keep"

[[rule]]
preset = "q4_k_m"
"""


def test_a_recipe_file_reads_as_written() -> None:
    recipe = loads(GOOD)
    assert recipe == Recipe(
        name="small but careful",
        comment="for the edge box",
        rules=(
            Rule(Match(role=("v", "down"), layers=(0, 3)), Strategy("q6_k"), note="early layers hurt"),
            Rule(
                Match("*.o_proj.weight", dtype=("BF16",), ndim=2, min_columns=256, min_numel=65536),
                Strategy("int4-g128"),
            ),
            Rule(Match(names=("lm_head.weight",)), Strategy(KEEP)),
            Rule(Match(), preset="Q4_K_M"),
        ),
    )


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
somewhere = st.none() | st.integers(0, 10**12)
matches = st.builds(
    Match,
    name=texts.filter(lambda s: not s.startswith("re:")) | st.just("re:q_(proj|norm)$"),
    names=st.lists(texts, max_size=3).map(tuple),
    role=st.lists(st.sampled_from(ROLES), max_size=3).map(tuple),
    dtype=st.lists(st.sampled_from(["BF16", "F16", "Q4_K", "F8_E4M3"]), max_size=2).map(tuple),
    layers=st.none() | st.tuples(st.integers(0, 50), st.integers(50, 90)),
    ndim=st.none() | st.integers(0, 4),
    min_columns=somewhere,
    min_numel=somewhere,
)
strategies = st.sampled_from([KEEP, "int5-g48-asym", *(f.name for f in FORMATS if f.encodable)]).map(Strategy)
presets = st.sampled_from([p.name for p in PRESETS if p.available])
rules = st.builds(Rule, matches, strategies, note=texts) | st.builds(Rule, matches, preset=presets, note=texts)
recipes = st.builds(Recipe, texts, st.lists(rules, max_size=4).map(tuple), texts)


@settings(max_examples=200, deadline=None)
@given(recipes)
def test_writing_then_reading_gives_the_same_recipe(recipe: Recipe) -> None:
    text = dumps(recipe)
    assert loads(text) == recipe
    assert dumps(loads(text)) == text
    assert tomllib.loads(text)["quantbench"] == 1


def test_long_lists_are_written_line_by_line() -> None:
    names = tuple(f"model.layers.{n}.mlp.up_proj.weight" for n in range(9))
    text = dumps(Recipe("x", (Rule(Match(names=names), Strategy("q4_k")),)))
    assert max(map(len, text.splitlines())) < 60
    assert loads(text).rules[0].match.names == names


def rule(lines: str) -> str:
    return f"quantbench = 1\n[[rule]]\nstrategy = 'q4_k'\n[[rule]]\n{lines}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantbench = ", "recipe: not TOML: "),
        ("name = 'x'", "recipe: not a recipe of ours; its first line should be quantbench = 1"),
        ("quantbench = 2", "recipe: written in version 2 of the recipe notation; this program reads version 1"),
        ("quantbench = 'one'", "recipe: quantbench is 'one', not a version"),
        ("quantbench = true", "recipe: quantbench is True, not a version"),
        ("quantbench = 1\nnmae = 'x'", "recipe: unknown key 'nmae'; did you mean name"),
        ("quantbench = 1\nname = 3", "recipe: name is a number, not text"),
        ("quantbench = 1\nrule = 'x'", "recipe: rule is not a list of tables; begin each rule with [[rule]]"),
        ("quantbench = 1\n[rule]\nstrategy='q4_k'", "recipe: rule is not a list of tables"),
        (rule("strategy = 'q4_kk'"), "recipe, rule 2: unknown format 'q4_kk'; did you mean q4_k?"),
        (rule("strategy = 'q4_k+gtpq'"), "recipe, rule 2: unknown method 'gtpq'"),
        (rule("strategy = 'q4_k+'"), "recipe, rule 2: 'q4_k+' is not a strategy"),
        (rule("strategy = 4"), "recipe, rule 2: strategy is a number, not text or a table"),
        (rule("strategy = {method = 'nearest'}"), "recipe, rule 2: strategy has no format"),
        (rule("strategy = {format = 4}"), "recipe, rule 2: strategy.format is a number, not text"),
        (
            rule("strategy = {format = 'q4_k', damp = 0.1}"),
            "recipe, rule 2: unknown parameter 'damp'; known here: effort",
        ),
        (rule("strategy = {format = 'keep', method = 'gptq'}"), "recipe, rule 2: keep takes no method"),
        (rule("strategi = 'q4_k'"), "recipe, rule 2: unknown key 'strategi'; did you mean strategy"),
        (rule("name = '*'"), "recipe, rule 2: a rule gives either a strategy or a preset"),
        (rule("strategy = 'q4_k'\npreset = 'Q4_K_M'"), "recipe, rule 2: a rule gives either a strategy or a preset"),
        (rule("preset = 'Q4_M'"), "recipe, rule 2: unknown preset 'Q4_M'; did you mean "),
        (rule("name = 're:('\nstrategy = 'q4_k'"), "recipe, rule 2: name 're:(': not a regular expression"),
        (rule("role = 'query'\nstrategy = 'q4_k'"), "recipe, rule 2: unknown role 'query'"),
        (rule("role = []\nstrategy = 'q4_k'"), "recipe, rule 2: role is an empty list"),
        (rule("dtype = ['BF17']\nstrategy = 'q4_k'"), "recipe, rule 2: unknown dtype 'BF17'; did you mean BF16"),
        (rule("layers = [3, 1]\nstrategy = 'q4_k'"), "recipe, rule 2: layers [3, 1] is empty"),
        (rule("layers = [1, 2, 3]\nstrategy = 'q4_k'"), "recipe, rule 2: layers is not a layer or a pair"),
        (rule("layers = [true, 2]\nstrategy = 'q4_k'"), "recipe, rule 2: layers is not a layer or a pair"),
        (rule("ndim = 2.5\nstrategy = 'q4_k'"), "recipe, rule 2: ndim is a number, not a whole number"),
        (rule("min_numel = -1\nstrategy = 'q4_k'"), "recipe, rule 2: min_numel is -1, must be ≥ 0"),
        (rule("names = [1]\nstrategy = 'q4_k'"), "recipe, rule 2: names is not a list of texts"),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        loads(text)
    assert str(error.value).startswith(message)


def test_one_layer_and_one_role_need_no_list() -> None:
    recipe = loads("quantbench = 1\n[[rule]]\nrole = 'q'\nlayers = 3\nstrategy = 'q8_0'")
    assert recipe.rules[0].match == Match(role=("q",), layers=(3, 3))


def test_files_are_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert load(str(path)) == load_file(path) == loads(GOOD)
    path.write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load_file(path) == loads(GOOD)
    path.write_text(rule("strategy = 'q4_kk'"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine\.toml, rule 2: unknown format"):
        load(str(path))
    path.write_bytes(b"quantbench = 1\nname = '\xff'")
    with pytest.raises(RecipeError, match=r"mine\.toml: not UTF-8 at byte 23"):
        load(str(path))
    with pytest.raises(RecipeError, match=r"gone\.toml: cannot be read"):
        load(str(tmp_path / "gone.toml"))
    with pytest.raises(RecipeError, match="cannot be read"):
        load(str(tmp_path) + "/")


def test_hostile_files_are_refused_in_words() -> None:
    for text in ("[" * 50_000, "quantbench = 1\nx = " + "[" * 50_000, "quantbench = " + "9" * 10_000, "\0"):
        with pytest.raises(RecipeError):
            loads(text)
