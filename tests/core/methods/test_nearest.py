"""The registry of methods, and round to nearest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from core.context import SILENT
from core.errors import Cancelled, RecipeError, UnsupportedFormat
from core.formats import get_format
from core.methods import METHODS, Statistic, get_method
from core.recipes.checking import make_strategy


def test_registry() -> None:
    assert len({m.name for m in METHODS}) == len(METHODS)
    for method in METHODS:
        assert get_method(method.name.upper()) is method
        assert method.title
        assert method.help
    with pytest.raises(RecipeError, match="unknown method 'nearst'") as caught:
        get_method("nearst")
    assert caught.value.hint == "did you mean nearest?"


def test_nearest_is_the_formats_finest_fit_and_uses_importance() -> None:
    w = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.01
    f = get_format("q4_k")
    nearest = get_method("nearest")
    for params, effort in (({}, "best"), ({"effort": "exact"}, "exact"), ({"effort": "best"}, "best")):
        plain = nearest.quantize(w, f, {}, params)
        weighted = nearest.quantize(w, f, {Statistic.IMPORTANCE: importance}, params, SILENT)
        assert torch.equal(plain.parts["blocks"], f.quantize(w, None, effort).parts["blocks"])
        assert torch.equal(weighted.parts["blocks"], f.quantize(w, importance, effort).parts["blocks"])
        assert not torch.equal(plain.parts["blocks"], weighted.parts["blocks"])
    assert not torch.equal(f.quantize(w).parts["blocks"], f.quantize(w, None, "best").parts["blocks"])
    only = get_format("q1_0")
    assert torch.equal(nearest.quantize(w, only, {}, {}).parts["blocks"], only.quantize(w).parts["blocks"])


def test_auto_is_the_effort_with_less_kld() -> None:
    w = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    for name in ("iq4_nl", "iq4_xs", "q4_0", "q6_k"):
        f, other = get_format(name), "exact" if name.startswith("q") else "best"
        taken, alike, different = (
            get_method("nearest").quantize(w, f, {}, params).parts["blocks"]
            for params in ({}, {"effort": f.default_effort}, {"effort": other})
        )
        assert {f.default_effort, other} == {"exact", "best"}
        assert torch.equal(taken, alike)
        assert not torch.equal(taken, different)


def test_an_effort_that_a_format_has_not_is_refused_when_asked_for() -> None:
    nearest = get_method("nearest")
    assert nearest.unsuited(get_format("int4-g128"), {"effort": "best"}) == "no effort best here, only exact"
    for name, effort in (("int4-g128", "exact"), ("int4-g128", "auto"), ("q4_k", "best"), ("q4_k", "exact")):
        assert nearest.unsuited(get_format(name), {"effort": effort}) is None
    with pytest.raises(UnsupportedFormat, match="int4-g128 has no effort 'best'"):
        nearest.quantize(torch.ones(1, 128), get_format("int4-g128"), {}, {"effort": "best"})


def test_nearest_stops_when_told() -> None:
    class Stop:
        def progress(self, done: int, total: int, note: str = "") -> None: ...
        def partial(self, value: object) -> None: ...
        def check(self) -> None:
            raise Cancelled

    with pytest.raises(Cancelled):
        get_method("nearest").quantize(torch.ones(1, 32), get_format("q8_0"), {}, {}, Stop())


def test_activations_choose_the_outlier_columns() -> None:
    kept = get_format("llm-int8-o3")
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(8))
    absmax = torch.ones(64)
    absmax[[9, 30, 31, 50]] = torch.tensor([9.0, 8.0, 7.0, 6.0])
    importance = torch.ones(64)
    importance[:3] = 100.0
    stats = {Statistic.ABSMAX: absmax, Statistic.IMPORTANCE: importance}
    q = get_method("nearest").quantize(w, kept, stats, {})
    assert q.parts["outlier_columns"].tolist() == [[9, 30, 31]]
    assert q.fallbacks == ("4 input channels reach 6, the 3 largest are kept in 16 bits",)
    del stats[Statistic.ABSMAX]
    assert get_method("nearest").quantize(w, kept, stats, {}).parts["outlier_columns"].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("kind", ["percentile", "rmse"])
def test_range_is_a_parameter_of_integer_formats(kind: str) -> None:
    w = torch.randn(4, 256, generator=torch.Generator().manual_seed(2))
    f, nearest = get_format("int4-g128"), get_method("nearest")
    chosen = nearest.quantize(w, f, {}, {"range": kind, "percentile": 90.0})
    expected = replace(f, range=kind, percentile=90.0).quantize(w)  # type: ignore[call-arg]
    assert all(torch.equal(part, expected.parts[key]) for key, part in chosen.parts.items())
    assert not torch.equal(chosen.parts["scale"], f.quantize(w).parts["scale"])


@pytest.mark.parametrize(
    ("format", "params", "why"),
    [
        ("int4", {"range": "rmse"}, None),
        ("int8-col", {"range": "percentile", "percentile": 99.0}, None),
        ("int4-g64-shift", {"range": "percentile"}, None),
        ("int4-g64-shift", {"range": "rmse"}, "no range rmse here, only minmax and percentile"),
        ("q4_k", {"range": "rmse"}, "no range rmse here, only integer formats have one"),
        ("int4", {"percentile": 99.0}, "percentile goes with range=percentile"),
        ("int4", {"effort": "best"}, "no effort best here, only exact"),
    ],
)
def test_parameters_that_say_nothing_to_a_format_are_named(
    format: str, params: dict[str, Any], why: str | None
) -> None:
    assert get_method("nearest").unsuited(get_format(format), params) == why
    if why is None:
        assert dict(make_strategy(format, "nearest", params).params) == params
    else:
        with pytest.raises(RecipeError, match=why):
            make_strategy(format, "nearest", params)
