"""From rules to tensors: what is quantized, what is kept, and whether the reason says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.errors import RecipeError
from core.methods import METHODS, Method, Nearest
from core.recipes import explain, load, resolve
from core.recipes.model import Match, Recipe, Resolved, Rule, Strategy
from core.recipes.presets import get_preset
from core.targets.base import Outline
from tests.core.recipes.outlines import AnyTarget, llama, stacked, tensor


def by_name(recipe: Recipe, outline: Outline, target: AnyTarget | None = None, **more) -> dict[str, Resolved]:
    resolved = resolve(recipe, outline, target or AnyTarget(), **more)
    assert len(resolved) == len(outline.tensors)
    return {t.name: r for t, r in zip(outline.tensors, resolved, strict=True)}


def test_a_format_goes_to_every_matrix_that_fits() -> None:
    found = by_name(load("q4_k"), llama(4, ffn=300, experts=0))
    assert found["blk.0.attn_q.weight"] == Resolved(Strategy("q4_k"), 0, "all tensors")
    assert found["output.weight"].strategy == found["token_embd.weight"].strategy == Strategy("q4_k")
    norm, down = found["blk.0.attn_norm.weight"], found["blk.0.ffn_down.weight"]
    assert (norm.strategy.format, norm.reason, norm.fallback, norm.extras["kept"]) == (
        "keep",
        "norm",
        False,
        "protected",
    )
    assert (down.strategy.format, down.fallback, down.extras["kept"]) == ("keep", True, "misfit")
    assert down.reason == "columns 300 is not a multiple of 256, as q4_k needs"
    assert explain(norm) == "kept: norm"
    assert explain(found["output.weight"]) == "q4_k"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (tensor("blk.0.attn_q.weight", (0, 256)), "empty"),
        (tensor("blk.0.attn_q.weight", ()), "scalar"),
        (tensor("blk.0.attn_q.weight", (256,)), "1-D"),
        (tensor("blk.0.attn_q.weight", (1, 256)), "1-D"),
        (tensor("blk.0.attn_q.weight", (256, 256), dtype="I64"), "I64 holds no real numbers"),
        (tensor("blk.0.attn_q.weight", (256, 256), dtype="BOOL"), "BOOL holds no real numbers"),
        (tensor("blk.0.attn_q.bias", (256, 256)), "bias"),
        (tensor("blk.0.ffn_gate_inp.weight", (256, 256)), "router"),
        (tensor("position_embd.weight", (256, 256)), "position table"),
        (tensor("blk.0.ssm_a", (256, 256)), "not a weight"),
        (tensor("blk.0.ssm_conv1d.weight", (256, 256)), "llama.cpp needs it unquantized"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("recipe", ["q8_0", "Q4_0"])
def test_what_is_no_matrix_of_weights_is_kept(made, reason: str, recipe: str) -> None:
    outline = Outline((tensor("token_embd.weight", (512, 256)), made))
    kept = resolve(load(recipe), outline, AnyTarget())[1]
    assert (kept.strategy.format, kept.reason, kept.fallback) == ("keep", reason, False)


def test_casts_to_plain_floats_reach_everything_real() -> None:
    outline = Outline(
        (
            tensor("token_embd.weight", (512, 256)),
            tensor("blk.0.attn_norm.weight", (256,)),
            tensor("blk.0.scale", ()),
            tensor("blk.0.ids.weight", (4, 4), dtype="I32"),
            tensor("blk.0.none.weight", (0, 4)),
        )
    )
    for name in ("f16", "F16", "bf16", "BF16", "f32"):
        formats = [r.strategy.format for r in resolve(load(name), outline, AnyTarget())]
        assert formats == [name.lower()] * 3 + ["keep", "keep"]
    refusing = AnyTarget([("f16", "blk.0.attn_norm.weight")])
    norm = by_name(load("f16"), outline, refusing)["blk.0.attn_norm.weight"]
    assert (norm.strategy.format, norm.reason, norm.fallback) == ("keep", "not here", False)


def test_first_rule_wins_and_is_named() -> None:
    recipe = Recipe(
        "mine",
        (
            Rule(Match("*.attn_q.weight", layers=(0, 0)), Strategy("keep")),
            Rule(Match(role=("q", "k")), Strategy("q8_0")),
            Rule(Match("blk.*"), preset="Q4_K_M"),
        ),
    )
    found = by_name(recipe, llama(4))
    assert found["blk.0.attn_q.weight"].rule_text == "1 · *.attn_q.weight, layer 0"
    assert explain(found["blk.0.attn_q.weight"]) == "kept"
    assert found["blk.1.attn_q.weight"] == Resolved(Strategy("q8_0"), 1, "2 · q/k")
    v = found["blk.2.attn_v.weight"]
    assert (str(v.strategy), v.rule, v.rule_text, v.reason) == ("q6_k", 2, "3 · blk.*", "attn_v: q4_k → q6_k")
    left = found["output.weight"]
    assert (left.strategy.format, left.rule, left.rule_text, left.reason) == ("keep", -1, "kept", "no rule matches")


def test_a_preset_counts_over_the_whole_model_whatever_other_rules_take() -> None:
    alone = by_name(load("Q4_K_M"), llama(32))
    mixed = Recipe("", (Rule(Match(layers=(0, 9)), Strategy("q8_0")), Rule(Match(), preset="Q4_K_M")))
    found = by_name(mixed, llama(32))
    for name, resolved in found.items():
        if ".attn_v." in name and resolved.rule == 1:
            assert resolved.strategy == alone[name].strategy


def test_substitutes_of_presets_are_badges() -> None:
    found = by_name(load("Q4_K_M"), llama(4, hidden=288, ffn=100))
    q, down = found["blk.0.attn_q.weight"], found["blk.0.ffn_down.weight"]
    assert (q.strategy.format, q.reason, q.fallback) == ("q5_0", "columns 288: q4_k → q5_0", True)
    assert (down.strategy.format, down.fallback) == ("f16", True)
    assert explain(q) == "q5_0 (columns 288: q4_k → q5_0)"


def test_refusals_are_badges_for_linears_and_named_tensors_only() -> None:
    refusing = AnyTarget([("q8_0", n) for n in ("token_embd.weight", "blk.0.attn_q.weight")])
    found = by_name(load("q8_0"), llama(2), refusing)
    assert (found["token_embd.weight"].reason, found["token_embd.weight"].fallback) == ("not here", False)
    assert (found["blk.0.attn_q.weight"].reason, found["blk.0.attn_q.weight"].fallback) == ("not here", True)
    by_hand = Recipe("", (Rule(Match(names=("token_embd.weight",)), Strategy("q8_0")),))
    assert by_name(by_hand, llama(2), refusing)["token_embd.weight"].fallback


@pytest.mark.parametrize(
    ("preset", "given"), [("W4A16", "int4-g128"), ("W4A16_ASYM", "int4-g128-asym"), ("W8A16", "int8")]
)
def test_linears_get_one_format_and_the_rest_stays(preset: str, given: str) -> None:
    found = by_name(load(preset), llama(2, gguf=False))
    assert found["model.layers.0.self_attn.q_proj.weight"].strategy == Strategy(given)
    assert found["model.layers.1.mlp.down_proj.weight"].strategy == Strategy(given)
    kept = {n: r.reason for n, r in found.items() if r.strategy.format == "keep"}
    assert kept.pop("lm_head.weight") == "head"
    assert kept.pop("model.embed_tokens.weight") == "embedding"
    assert set(kept.values()) == {"norm"}
    assert not any(r.fallback for r in found.values())
    narrow = by_name(load("W4A16"), llama(1, ffn=300, gguf=False))["model.layers.0.mlp.down_proj.weight"]
    assert (narrow.strategy.format, narrow.fallback) == ("keep", True)
    assert narrow.reason == "columns 300 is not a multiple of 128, as int4-g128 needs"


def test_merged_tensors_say_when_their_sources_disagree() -> None:
    parts = [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkv"]
    outline = Outline((stacked("blk.0.attn_qkv.weight", (512, 256), parts),))
    recipe = Recipe("", (Rule(Match("*.q_proj.weight"), Strategy("q8_0")), Rule(Match("*.v_*"), Strategy("q4_0"))))
    (found,) = resolve(recipe, outline, AnyTarget())
    assert found.strategy == Strategy("q8_0")
    assert found.extras["sources"] == (
        f"made from several tensors, of which {parts[1]} matches no rule, {parts[2]} matches 2 · *.v_*"
    )


class Picky(Method):
    """Goes with nothing but q8_0."""

    name = "picky"
    title = help = ""

    def misfit(self, format):
        return None if format.name == "q8_0" else "only q8_0"

    def quantize(self, w, format, stats, params, ctx=None):
        raise NotImplementedError


@pytest.fixture
def picky(monkeypatch) -> None:
    import core.methods

    monkeypatch.setattr(core.methods, "_BY_NAME", {"picky": Picky(), "nearest": Nearest()})


def test_a_method_that_does_not_go_with_a_presets_format_is_a_fallback(picky) -> None:
    assert METHODS
    found = by_name(load("Q8_0+picky"), llama(2, ffn=100))
    assert found["blk.0.attn_q.weight"].strategy == Strategy("q8_0", "picky")
    down = found["blk.0.ffn_down.weight"]
    assert (down.strategy, down.fallback) == (Strategy("f16"), True)
    assert down.reason == "columns 100: q8_0 → f16; picky → nearest: f16 has no codes to choose"
    head = by_name(load("Q4_0+picky"), llama(2))["output.weight"]
    assert (head.strategy, head.reason) == (Strategy("q6_k"), "head: q4_0 → q6_k; picky → nearest: only q8_0")
    with pytest.raises(RecipeError, match="picky does not go with q4_0: only q8_0"):
        load("q4_0+picky")


def test_a_presets_parameters_reach_the_formats_they_suit() -> None:
    found = by_name(load("Q8_0(effort=best)"), llama(2, ffn=100))
    assert str(found["blk.0.attn_q.weight"].strategy) == "q8_0(effort=best)"
    down = found["blk.0.ffn_down.weight"]
    assert down.strategy == Strategy("f16")
    assert down.reason == "columns 100: q8_0 → f16; no effort best here, only exact"


def test_rules_that_make_no_sense_are_named() -> None:
    outline = llama(1)
    good = Rule(Match(), Strategy("q8_0"))
    for bad, message in (
        (Rule(Match(), Strategy("q9")), "mine, rule 2: unknown format 'q9'"),
        (Rule(Match()), "mine, rule 2: a rule gives either a strategy or a preset"),
        (replace(good, preset="Q4_0"), "mine, rule 2: a rule gives either a strategy or a preset"),
        (Rule(Match(), preset="Q4"), "mine, rule 2: unknown preset 'Q4'"),
        (Rule(Match("re:["), Strategy("q8_0")), "mine, rule 2: name 're:\\['"),
    ):
        with pytest.raises(RecipeError, match=message):
            resolve(Recipe("mine", (good, bad)), outline, AnyTarget())


def test_fifty_thousand_tensors() -> None:
    outline = llama(5556)
    assert len(outline.tensors) > 50_000
    resolved = resolve(load("Q4_K_M"), outline, AnyTarget())
    assert sum(r.strategy.format != "keep" for r in resolved) == 5556 * 7 + 2


def test_presets_say_what_they_need() -> None:
    preset = get_preset("q4_k_m")
    assert preset.available
    assert set(preset.formats) == {"q4_k", "q5_k", "q6_k"}
    with pytest.raises(RecipeError, match="unknown preset 'Q4_K_N'; did you mean Q4_K_"):
        get_preset("Q4_K_N")
