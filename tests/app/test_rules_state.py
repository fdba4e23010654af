"""Rules as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.panels.rules.state import lines_of, match_text, parse_match, retyped, strategy_text
from core.errors import RecipeError
from core.recipes.model import Match, Recipe, Rule, Strategy
from core.roles import ROLES

matches = st.builds(
    Match,
    name=st.sampled_from(["", "*.q_proj.weight", "re:attn_(q|k)", "re:two words", "blk.[0-3].*"]),
    role=st.lists(st.sampled_from(ROLES), max_size=3, unique=True).map(tuple),
    dtype=st.sampled_from([(), ("BF16",), ("F16", "F32")]),
    layers=st.sampled_from([None, (0, 3), (7, 7)]),
    ndim=st.sampled_from([None, 2]),
    min_columns=st.sampled_from([None, 256]),
    min_numel=st.sampled_from([None, 1_000_000]),
)


@given(matches)
def test_what_is_shown_can_be_typed(match: Match) -> None:
    assert parse_match(match_text(match)) == match


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("*", Match()),
        ("", Match()),
        ("  *.weight ", Match(name="*.weight")),
        ("role:V,down layers:0-3", Match(role=("v", "down"), layers=(0, 3))),
        ("layer:5", Match(layers=(5, 5))),
        ("dtype:bf16 columns≥512", Match(dtype=("BF16",), min_columns=512)),
        ("weights>=65_536 *.weight", Match(min_numel=65536, name="*.weight")),
        (r"ndim:2 re:a b \d", Match(ndim=2, name=r"re:a b \d")),
    ],
)
def test_typed_patterns(text: str, match: Match) -> None:
    assert parse_match(text) == match


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("role:quarry", "unknown role 'quarry'"),
        ("layers:a-b", "'a' is not a whole number"),
        ("layers:5-2", "is empty"),
        ("re:(", "not a regular expression"),
        ("*.a *.b", "two patterns"),
        ("dtype:BF17", "unknown dtype 'BF17'"),
    ],
)
def test_wrong_patterns_say_why(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        parse_match(text)


def test_retyped_strategies() -> None:
    rule = Rule(Match(name="*"), Strategy("q4_k"))
    assert retyped(rule, strategy="q6_k").strategy == Strategy("q6_k")
    assert retyped(rule, strategy="keep").strategy == Strategy("keep")
    preset = retyped(rule, strategy="Q4_K_M")
    assert (preset.preset, preset.strategy) == ("Q4_K_M", None)
    assert retyped(preset, strategy="q4_k") == rule
    assert strategy_text(preset) == "Q4_K_M"
    with pytest.raises(RecipeError, match="unknown"):
        retyped(rule, strategy="q9_k")


def test_lines_say_what_kind_a_rule_is_and_whether_it_is_shadowed() -> None:
    recipe = Recipe(
        "r",
        (
            Rule(Match(names=("a", "b")), Strategy("q4_k")),
            Rule(Match(name="*"), Strategy("q6_k")),
            Rule(Match(role=("v",)), Strategy("q8_0")),
            Rule(Match(), preset="Q4_K_M"),
        ),
    )
    lines = lines_of(recipe, [(2, 2), (10, 8), (3, 0), (10, 0)])
    assert [x.kind for x in lines] == ["by hand", "rule", "rule", "preset"]
    assert [x.shadowed for x in lines] == [False, False, True, True]
    assert [x.editable for x in lines] == [False, True, True, True]
    assert lines[0].pattern == "2 tensors, assigned by hand"
    assert lines[2].pattern == "role:v"
    assert lines_of(recipe, None)[1].matched is None
