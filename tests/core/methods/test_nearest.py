"""The registry of methods, and round to nearest."""

from __future__ import annotations

import pytest
import torch

from core.context import SILENT
from core.errors import Cancelled, RecipeError
from core.formats import get_format
from core.methods import METHODS, Statistic, get_method


def test_registry() -> None:
    assert len({m.name for m in METHODS}) == len(METHODS)
    for method in METHODS:
        assert get_method(method.name.upper()) is method
        assert method.title
        assert method.help
    with pytest.raises(RecipeError, match="unknown method 'nearst'") as caught:
        get_method("nearst")
    assert caught.value.hint == "did you mean nearest?"


def test_nearest_is_the_formats_own_fit_and_uses_importance() -> None:
    w = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.01
    f = get_format("q4_k")
    nearest = get_method("nearest")
    plain = nearest.quantize(w, f, {}, {})
    weighted = nearest.quantize(w, f, {Statistic.IMPORTANCE: importance}, {}, SILENT)
    assert torch.equal(plain.parts["blocks"], f.quantize(w).parts["blocks"])
    assert torch.equal(weighted.parts["blocks"], f.quantize(w, importance).parts["blocks"])
    assert not torch.equal(plain.parts["blocks"], weighted.parts["blocks"])


def test_nearest_stops_when_told() -> None:
    class Stop:
        def progress(self, done: int, total: int, note: str = "") -> None: ...
        def partial(self, value: object) -> None: ...
        def check(self) -> None:
            raise Cancelled

    with pytest.raises(Cancelled):
        get_method("nearest").quantize(torch.ones(1, 32), get_format("q8_0"), {}, {}, Stop())
