"""HQQ against a restatement of the published algorithm, and its two implementations against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.context import SILENT
from core.errors import Cancelled, NonFinite
from core.formats import Format, get_format
from core.formats.uniform import Uniform
from core.methods import get_method
from core.methods import hqq as module
from core.methods.hqq import Hqq, Levels, power, refit, shrink, solve, solve_on_lanes
from core.parameters import check_parameters
from tests.core.formats.laws import weights

FORMATS = ("int4-g64-asym", "int2-g64-asym", "int3-g128-asym", "int8-asym", "int4-g64-shift", "int2-shift", "q4_1",
           "q5_1")  # fmt: skip
ALL = pytest.mark.parametrize("name", FORMATS)
HQQ = Hqq()
DEFAULTS = check_parameters(HQQ.parameters, {}, "")


def published(w: torch.Tensor, bits: int, group: int, iterations: int = 20) -> tuple[torch.Tensor, ...]:
    """Codes, inverse scale and zero as the hqq package has them by default (axis 1, legacy solver), traps and all."""
    p, beta, top = 0.7, 10.0, 2**bits - 1
    x = w.float().reshape(-1, group)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    inverse = torch.where((high - low).abs() <= 1e-4, torch.ones_like(low), top / (high - low)).clamp(max=2e4)
    zero = -low * inverse
    best = float("inf")
    for _ in range(iterations):
        q = (x * inverse + zero).round().clamp(0, top)
        back = (q - zero) / inverse
        size = (x - back).abs()
        kept = (size - size.pow(p - 1) / beta).clamp(min=0) * (x - back).sign()
        zero = (q - (x - kept) * inverse).mean(1, keepdim=True)
        error = float(size.mean())
        if not error < best:
            break
        best = error
    return (x * inverse + zero).round().clamp(0, top), inverse, zero


def published_error(w: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    q, inverse, zero = published(w, bits, group)
    return w - ((q - zero) / inverse).reshape(w.shape)


def error(w: torch.Tensor, f: Format, **given: object) -> torch.Tensor:
    return w - HQQ.quantize(w, f, {}, {**DEFAULTS, **given}).dequantize()


def shift(width: int, group: int) -> Uniform:
    """Float zeros with nothing rounded: what HQQ itself stores."""
    f = get_format(f"int{width}-g{group}-shift")
    assert isinstance(f, Uniform)
    return replace(f, scale_dtype="F32")


def model_like(rows: int = 128, columns: int = 512, sigma: float = 0.02) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.distributions.Laplace(0.0, sigma).icdf(torch.rand(rows, columns, generator=g) * 0.999 + 5e-4)


def test_listed() -> None:
    assert isinstance(get_method("HQQ"), Hqq)
    assert DEFAULTS == {"p": 0.7, "beta": 10.0, "iterations": 20, "refine_scale": True}
    assert not HQQ.needs


def test_misfits() -> None:
    for name in FORMATS:
        assert HQQ.misfit(get_format(name)) is None
    assert HQQ.misfit(get_format("int4-g64")) == "needs a zero point (an -asym, -shift or -bias format)"
    assert HQQ.misfit(get_format("int4-tensor-asym")) == "needs a scale per row or group"
    for name in ("q4_0", "q4_k", "nf4", "fp8-e4m3", "bf16"):
        assert HQQ.misfit(get_format(name)) == "needs levels with a scale and a zero of their own per group"


def test_one_step_is_the_published_one() -> None:
    """In units of weights instead of steps, one round of ours moves the zero where the reference moves it."""
    w = model_like(64, 256, sigma=1.0)  # large enough for the shrinking to act
    x = w.reshape(-1, 64)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / 15
    codes, e = module.assign(x, step, low, 15)
    left = shrink(e, torch.ones_like(step), 0.7, 10.0)
    assert 0.01 < (left != 0).float().mean() < 0.9
    _, offset = refit(x - left, codes, step, False)
    _, inverse, zero = published(w, 4, 64, iterations=1)
    assert torch.allclose(-offset / step, zero, rtol=1e-4, atol=1e-4)
    assert torch.allclose(1 / step, inverse)


@pytest.mark.parametrize(("width", "group"), [(2, 64), (3, 64), (4, 64), (4, 128)])
@pytest.mark.parametrize("sigma", [0.02, 1.0])
def test_better_than_published(width: int, group: int, sigma: float) -> None:
    w = model_like(sigma=sigma)
    f = shift(width, group)
    theirs = published_error(w, width, group)
    same_scale, ours = error(w, f, refine_scale=False), error(w, f)
    assert 0.9 < same_scale.abs().mean() / theirs.abs().mean() < 1.005
    assert 0.6 < ours.abs().mean() / theirs.abs().mean() < 0.98
    assert ours.square().mean() < theirs.square().mean()


def test_tiny_weights_do_not_collapse() -> None:
    """The published guard turns weights of 1e-5 into one code; here the codes do not depend on the size at all."""
    w = model_like(32, 256, sigma=2.0**-17)
    assert len(published(w, 4, 64)[0].unique()) == 1
    f = shift(4, 64)
    small, large = (HQQ.quantize(x, f, {}, DEFAULTS) for x in (w, w * 2.0**20))
    assert torch.equal(small.codes, large.codes)
    assert torch.equal(small.dequantize() * 2.0**20, large.dequantize())
    assert len(small.codes.unique()) == 16


@ALL
@pytest.mark.parametrize("refine_scale", [True, False])
def test_never_worse_than_nearest_in_any_group(name: str, refine_scale: bool) -> None:
    f = get_format(name)
    w = weights(40, 256, seed=6) / 100
    group = f.columns_per_grid if f.columns_per_grid > 1 else 256
    grid = f.fit(w)
    nearest = w - f.decode(f.encode(w, grid), grid)
    ours = error(w, f, refine_scale=refine_scale)
    a, b = (e.double().abs().reshape(-1, group).sum(1) for e in (ours, nearest))
    assert (a <= b * (1 + 1e-4) + 1e-9).all()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("int2-g64-asym", 0.55, 0.75),
        ("int4-g64-asym", 0.90, 0.97),
        ("int4-g64-shift", 0.84, 0.91),
        ("int2-g64-shift", 0.48, 0.62),
        ("q4_1", 0.83, 0.90),
    ],
)
def test_gain_in_squared_error(name: str, low: float, high: float) -> None:
    f = get_format(name)
    w = torch.randn(128, 512, generator=torch.Generator().manual_seed(1)) * 0.02
    nearest = w - f.quantize(w).dequantize()
    assert low < error(w, f).square().sum() / nearest.square().sum() < high


@ALL
def test_lanes_equal_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f = get_format(name)
    for dtype in ("F16", "BF16", "F32") if isinstance(f, Uniform) else ("",):
        g = replace(f, scale_dtype=dtype) if isinstance(f, Uniform) else f
        for given in ({}, {"refine_scale": False}, {"p": 1.0, "beta": 3.0, "iterations": 2}):
            w = weights(24, 256, seed=8)
            params = {**DEFAULTS, **given}
            fast = HQQ.quantize(w, g, {}, params).parts
            with monkeypatch.context() as undo:
                undo.setattr(module, "solve_on_lanes", solve)
                slow = HQQ.quantize(w, g, {}, params).parts
            for key, part in slow.items():
                assert torch.equal(fast[key].view(torch.uint8), part.view(torch.uint8)), (dtype, given, key)


def test_groups_of_any_size_on_lanes() -> None:
    for size in (1, 5, 16, 33):
        x = torch.randn(20, size, generator=torch.Generator().manual_seed(size))
        step, offset = torch.full((20,), 0.1), torch.full((20,), -0.5)
        step[3] = 0
        for levels in (Levels(15, "shift", "F32", -8), Levels(15, "offset", "F16"), Levels(15, "whole", "BF16", -8)):
            a = solve(x, step, offset, levels, **DEFAULTS)
            b = solve_on_lanes(x, step, offset, levels, **DEFAULTS)
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
            assert (a[0][3], a[1][3]) == (0, -0.5)


def test_power() -> None:
    x = torch.logspace(-30, 4, 3001)
    for exponent in (-0.9, -0.3, -0.01, 0.0):
        assert torch.allclose(power(x, exponent), x.double().pow(exponent).float(), rtol=1e-5)
    assert power(torch.zeros(1), -0.3).isfinite()


@ALL
def test_row_slices_equal_the_whole(name: str) -> None:
    f = get_format(name)
    w = weights(12, 256, seed=2)
    whole = HQQ.quantize(w, f, {}, DEFAULTS).dequantize()
    for a, b in ((0, 5), (5, 12)):
        assert torch.equal(HQQ.quantize(w[a:b], f, {}, DEFAULTS).dequantize(), whole[a:b])


@ALL
def test_extremes(name: str) -> None:
    f = get_format(name)
    for size in (0.0, 1.0, -3.0, 1e-4):
        flat = torch.full((3, 256), size)
        assert torch.allclose(HQQ.quantize(flat, f, {}, DEFAULTS).dequantize(), flat, rtol=1e-2)
    w = weights(4, 256).to(torch.bfloat16)
    assert torch.equal(
        HQQ.quantize(w, f, {}, DEFAULTS).dequantize(), HQQ.quantize(w.float(), f, {}, DEFAULTS).dequantize()
    )
    q = HQQ.quantize(w, f, {}, {})  # defaults fill in
    assert sum(p.numel() * p.element_size() for p in q.parts.values()) == f.nbytes((4, 256))
    assert torch.equal(f.dequantize(q.parts, (4, 256)), q.dequantize())
    w[2, 5] = float("nan")
    with pytest.raises(NonFinite, match="row 2"):
        HQQ.quantize(w, f, {}, DEFAULTS)
    assert HQQ.quantize(torch.zeros(0, 256), f, {}, DEFAULTS).dequantize().shape == (0, 256)


def test_cancelled_between_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1 << 10)
    calls = []

    class Stop:
        progress = SILENT.progress
        partial = SILENT.partial

        def check(self) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise Cancelled

    with pytest.raises(Cancelled):
        HQQ.quantize(weights(32, 256), get_format("int4-g64-asym"), {}, DEFAULTS, Stop())
    assert len(calls) == 3
