"""The plan: exact bytes, what is copied, and every problem that is known without an output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.engine.demands import LISTED, listed
from core.engine.model import Problem
from core.engine.plan import label_of, make_plan, plan_json
from core.errors import Cancelled, RecipeError
from core.formats import get_format
from core.formats.ggml.types import GGML_TYPES
from core.methods import Method, Nearest
from core.methods.base import Statistic
from core.recipes import load
from core.recipes.model import Match, Recipe, Rule, Strategy
from core.targets.base import Outline
from tests.core.engine.planning import Headers, Row
from tests.core.recipes.outlines import llama, stacked, tensor


def plan_of(recipe: Recipe | str, outline: Outline, **more):
    recipe = load(recipe) if isinstance(recipe, str) else recipe
    return make_plan(Headers(Path("model.safetensors"), outline), recipe, Row(outline), **more)


def texts(plan, severity: str) -> list[str]:
    return [str(p) for p in plan.problems if p.severity == severity]


def test_every_byte_is_known() -> None:
    outline = llama(4)
    plan = plan_of("Q4_K_M", outline)
    by_name = {t.tensor.name: t for t in plan.tensors}
    assert [t.tensor for t in plan.tensors] == list(outline.tensors)
    q = by_name["blk.0.attn_q.weight"]
    assert (q.nbytes, q.bpw, q.format, q.copy, q.quantized) == (256 * 144, 4.5, get_format("q4_k"), False, True)
    norm = by_name["output_norm.weight"]
    assert (norm.nbytes, norm.format.name, norm.copy, norm.quantized, norm.reason) == (
        1024,
        "f32",
        False,
        False,
        "norm",
    )
    down = [by_name[f"blk.{n}.ffn_down.weight"] for n in range(4)]
    assert [t.format.name for t in down] == ["q4_k", "q4_k", "q6_k", "q6_k"]
    assert plan.nbytes == 128 + sum(-(-t.nbytes // 32) * 32 for t in plan.tensors)
    weights = sum(t.numel for t in outline.tensors)
    assert plan.bpw == pytest.approx(8 * sum(t.nbytes for t in plan.tensors) / weights)
    assert plan.problems == ()
    assert (plan.source, plan.fingerprint) == (Path("model.safetensors"), "1")


def test_bytes_agree_with_ggml_for_every_preset() -> None:
    outline = llama(7, hidden=512, ffn=768)
    for name in ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0"):
        for t in plan_of(name, outline).tensors:
            assert t.nbytes == GGML_TYPES[t.format.name.upper()].nbytes(t.tensor.shape), (name, t.tensor.name)


def test_what_already_is_in_the_right_type_is_copied() -> None:
    made = (
        tensor("token_embd.weight", (512, 256), dtype="Q8_0"),
        tensor("output_norm.weight", (256,), dtype="F32"),
        tensor("blk.0.attn_norm.weight", (256,), dtype="BF16"),
        tensor("blk.0.attn_q.weight", (256, 256), dtype="Q4_0"),
        tensor("blk.0.attn_k.weight", (256, 256), dtype="BF16"),
    )
    plan = plan_of("q8_0", Outline(made))
    assert [(t.format.name, t.copy) for t in plan.tensors] == [
        ("q8_0", True),
        ("f32", True),
        ("f32", False),
        ("q8_0", False),
        ("q8_0", False),
    ]
    cast = plan_of("bf16", Outline(made))
    assert [(t.format.name, t.copy) for t in cast.tensors] == [
        ("bf16", False),
        ("f32", True),
        ("f32", False),
        ("bf16", False),
        ("bf16", True),
    ]
    # What is put together from several is never a copy, whatever its type.
    merged = stacked("blk.0.ffn_up_exps.weight", (2, 256, 256), ["a.experts.0.w3", "a.experts.1.w3"], dtype="BF16")
    assert not plan_of("bf16", Outline((merged,))).tensors[0].copy


def test_quantizing_twice_is_a_warning() -> None:
    made = tuple(tensor(f"blk.{n}.attn_q.weight", (256, 256), dtype="Q8_0") for n in range(3))
    warnings = texts(plan_of("q4_k", Outline(made)), "warning")
    assert warnings[0] == (
        "blk.0.attn_q.weight: is Q8_0 already, and loses again as q4_k; start from the original weights"
    )
    assert len(warnings) == 3
    assert texts(plan_of("q8_0", Outline(made)), "warning") == []
    assert texts(plan_of("f16", Outline(made)), "warning") == []
    eight = tensor("blk.0.attn_q.weight", (256, 256), dtype="F8_E4M3")
    assert len(texts(plan_of("q4_k", Outline((eight,))), "warning")) == 1


def test_misfits_fallbacks_and_leftovers_are_named() -> None:
    outline = replace(
        llama(1, ffn=300), dropped={"rotary.inv_freq": "computed by the runtime"}, notes=("pre-tokenizer guessed",)
    )
    plan = plan_of("q4_k", outline)
    assert texts(plan, "warning") == [
        "blk.0.ffn_down.weight: kept: columns 300 is not a multiple of 256, as q4_k needs; "
        "it stays unquantized; give it another format"
    ]
    assert texts(plan, "note") == ["rotary.inv_freq: left out: computed by the runtime", "pre-tokenizer guessed"]
    mixture = plan_of("Q4_K_M", llama(1, ffn=288))
    assert texts(mixture, "note") == ["blk.0.ffn_down.weight: columns 288: q6_k → q8_0"]
    assert texts(mixture, "warning") == texts(mixture, "error") == []


def test_nothing_to_quantize_is_an_error_that_says_why() -> None:
    plan = plan_of("int4-g128", llama(2))
    assert texts(plan, "error") == [
        "output.weight: nothing to quantize for row: kept, no room for int4-g128; choose another format or target"
    ]
    none = plan_of(Recipe("", (Rule(Match("nothing*"), Strategy("q4_k")),)), llama(2))
    assert "no rule matches" in texts(none, "error")[0]
    assert (
        "kept, the recipe keeps it"
        in texts(plan_of(Recipe("", (Rule(Match(), Strategy("keep")),)), llama(1)), "error")[0]
    )
    assert texts(plan_of("q4_k", Outline(())), "error") == ["nothing to quantize: the checkpoint holds no tensors"]
    assert texts(plan_of("f32", llama(1)), "error") == []


def test_merged_sources_under_different_rules_are_a_warning() -> None:
    merged = stacked("blk.0.ffn_up_exps.weight", (2, 256, 256), ["b.0.experts.0.up", "b.0.experts.1.up"])
    recipe = Recipe("", (Rule(Match("*.experts.0.*"), Strategy("q8_0")), Rule(Match(), Strategy("q4_0"))))
    plan = plan_of(recipe, Outline((merged,)))
    assert plan.tensors[0].format.name == "q8_0"
    assert texts(plan, "warning") == [
        "blk.0.ffn_up_exps.weight: made from several tensors, of which b.0.experts.1.up matches 2 · all tensors; "
        "the first source decides; let one rule name all of them"
    ]


class Hungry(Method):
    name = "hungry"
    title = help = ""
    needs = frozenset({Statistic.HESSIAN})

    def quantize(self, w, format, stats, params, ctx=None):
        raise NotImplementedError


def test_methods_ask_for_their_statistics(monkeypatch) -> None:
    import core.methods

    monkeypatch.setattr(core.methods, "_BY_NAME", {"hungry": Hungry(), "nearest": Nearest()})
    plan = plan_of("Q4_K_M+hungry", llama(2))
    assert texts(plan, "error") == [
        "token_embd.weight: hungry needs calibration data (hessian); give a calibration text, or take the method "
        "nearest"
    ]
    assert texts(plan_of("Q4_K_M+hungry", llama(2), statistics=frozenset({Statistic.HESSIAN})), "error") == []


def test_unknown_methods_are_an_error_of_the_plan() -> None:
    plan = plan_of(Recipe("", (Rule(Match(), Strategy("q4_k", "gtpq")),)), llama(1))
    assert texts(plan, "error")[0].startswith("token_embd.weight: unknown method 'gtpq'")
    with pytest.raises(RecipeError):
        plan_of(Recipe("", (Rule(Match(), Strategy("q4_kk")),)), llama(1))


def test_importance_reaches_the_presets() -> None:
    outline = llama(32)
    known = frozenset({Statistic.IMPORTANCE})
    names = [t.format.name for t in plan_of("Q4_0", outline, statistics=known).tensors if "ffn_down" in t.tensor.name]
    assert names == ["q4_1"] * 4 + ["q4_0"] * 28


@pytest.mark.parametrize(
    ("recipe", "label"),
    [
        (load("Q4_K_M"), "Q4_K_M"),
        (load("q4_k"), "q4_k"),
        (Recipe("mine", (Rule(Match("x"), Strategy("q8_0")), Rule(Match(), preset="Q4_K_S"))), "Q4_K_S"),
        (Recipe("mine", (Rule(Match("x"), preset="Q4_K_S"), Rule(Match(), Strategy("q8_0")))), "mine"),
        (Recipe(), ""),
    ],
)
def test_the_container_is_told_the_mixture(recipe: Recipe, label: str) -> None:
    assert label_of(recipe) == label
    outline = llama(1)
    target = Row(outline)
    make_plan(Headers(Path("m"), outline), recipe, target)
    assert target.labels == [label]


def test_long_lists_of_problems_are_counted() -> None:
    many = [(f"t{n}", "kept") for n in range(5000)]
    found = list(listed("warning", many, "hint"))
    assert len(found) == LISTED + 1
    assert found[0] == Problem("warning", "kept", "t0", "hint")
    rest = tuple(f"t{n}" for n in range(LISTED + 1, 5000))
    assert found[-1] == Problem("warning", "kept", f"t{LISTED}", "hint", rest)
    assert str(found[-1]) == f"t{LISTED}: kept (and {5000 - LISTED - 1:,} more tensors); hint"
    assert len(list(listed("note", many[: LISTED + 1], ""))) == LISTED + 1
    assert "more" not in str(list(listed("note", many[: LISTED + 1], ""))[-1])


def test_what_is_said_of_the_rest_is_true_of_it() -> None:
    many = [(f"t{n}", f"columns {n % 3}") for n in range(200)]
    told = {name: p.message for p in listed("warning", many, "") for name in (p.tensor, *p.others)}
    assert told == dict(many)
    assert len(list(listed("warning", many, ""))) == LISTED + 3
    unlike = [(f"t{n}", f"columns {n}") for n in range(500)]
    found = list(listed("warning", unlike, ""))
    assert len(found) == 2 * LISTED + 1
    assert found[-1].message == f"columns {2 * LISTED}, or the like"
    assert sum(1 + len(p.others) for p in found) == 500


def test_json_has_the_fields_that_are_promised() -> None:
    plan = plan_of("Q4_K_M", llama(1, ffn=288))
    answer = json.loads(json.dumps(plan_json(plan)))
    assert answer["bytes"] == plan.nbytes
    assert answer["bpw"] == plan.bpw
    assert answer["problems"] == [
        {
            "severity": "note",
            "message": "columns 288: q6_k → q8_0",
            "tensor": "blk.0.ffn_down.weight",
            "hint": "",
        }
    ]
    head = next(t for t in answer["tensors"] if t["name"] == "output.weight")
    assert head == {
        "name": "output.weight",
        "source": ["lm_head.weight"],
        "shape": [512, 256],
        "dtype": "BF16",
        "strategy": "q6_k",
        "format": "q6_k",
        "rule": "Q4_K_M",
        "reason": "head: q4_k → q6_k",
        "fallback": False,
        "bytes": 512 * 210,
        "bpw": 6.5625,
    }


class Stopped:
    def progress(self, done: int, total: int, note: str = "") -> None:
        pass

    def partial(self, value: object) -> None:
        pass

    def check(self) -> None:
        raise Cancelled


def test_planning_can_be_stopped() -> None:
    with pytest.raises(Cancelled):
        plan_of("Q4_K_M", llama(1), ctx=Stopped())


def test_fifty_thousand_tensors() -> None:
    outline = llama(5556)
    plan = make_plan(Headers(Path("m"), outline), load("Q4_K_M"), Row(outline))
    assert len(plan.tensors) > 50_000
    assert plan.nbytes == plan.layout.nbytes
