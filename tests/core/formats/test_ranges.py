"""Ranges of uniform formats: the percentile against numpy, the search against scans of 2,000 scales in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import core.formats.fitting as fitting
from core.errors import NonFinite, OutOfRange, RecipeError
from core.formats import get_format
from core.formats.base import Grid
from core.formats.fitting import ranges
from core.formats.uniform import Uniform

NAMES = [
    f"int{width}{end}"
    for width, end in (
        (4, "-g128"),
        (4, "-g128-asym"),
        (2, "-g32"),
        (3, "-g64-asym"),
        (4, ""),
        (5, "-asym"),
        (4, "-col"),
        (8, "-col-asym"),
        (4, "-tensor"),
        (6, "-tensor-asym"),
        (8, "-g128"),
    )
]
EVERY = pytest.mark.parametrize("name", NAMES)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def odd(rows: int = 24, columns: int = 256) -> torch.Tensor:
    """Rows of very different sizes, with outliers, zeros, constants, one sign and few values."""
    w = gaussian(rows, columns, 1) * torch.logspace(-3, 2, rows)[:, None]
    w[1, ::50] *= 30
    w[2] = 0
    w[3] = 0.37
    w[4] = -0.37
    w[5] = w[5].abs()
    w[6, 1:] = 0
    w[7] = w[7].sign()
    w[8, :128] = 0
    return w


def uniform(name: str, **changes: object) -> Uniform:
    f = get_format(name)
    assert isinstance(f, Uniform)
    return dataclasses.replace(f, **changes)  # type: ignore[arg-type]


def squares(f: Uniform, w: torch.Tensor, importance: torch.Tensor | None = None) -> np.ndarray:
    """Σ importance · error² of every run, float64."""
    error = (w.double() - f.quantize(w, importance).dequantize().double()).square()
    weights = torch.ones(w.shape[1]) if importance is None else importance
    return f.runs_of(error * weights.double()).sum(1).numpy()


def scanned(f: Uniform, w: torch.Tensor, importance: torch.Tensor | None = None, tries: int = 2000) -> np.ndarray:
    """The lowest of `tries` scales for every run, in float64 and numpy alone: from a fifth of the plain scale to 1.25
    of it, with a zero point at every code (then `tries` is shared among them)."""
    weights = torch.ones(w.shape[1]) if importance is None else importance
    x = f.runs_of(w.double()).contiguous().numpy()
    imp = f.runs_of(weights.double().expand(w.shape)).contiguous().numpy()
    steps = 2**f.width - 1
    if f.symmetric:
        plain, zeros = 2 * np.abs(x).max(1) / steps, [0]
    else:
        plain = (np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)) / steps
        zeros = list(range(f.qmin, f.qmax + 1))
    best = np.full(len(x), np.inf)
    for share in np.linspace(0.2, 1.25, tries // len(zeros)):
        scale = share * plain[:, None]
        q = np.rint(x / scale)
        for zero in zeros:
            e = x - scale * np.clip(q, f.qmin - zero, f.qmax - zero)
            best = np.minimum(best, (imp * e * e).sum(1))
    return best


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        # RMSE against the whole range on Gaussian weights: the scan's own ratio, ± 0.006.
        ("int2-g128", 0.683, 0.708),
        ("int3-g128", 0.812, 0.833),
        ("int4-g128", 0.903, 0.917),
        ("int4-g32", 0.899, 0.913),
        ("int4-g128-asym", 0.936, 0.950),
        ("int8-g128", 0.930, 0.948),
    ],
)
def test_gain_on_gaussian_weights(name: str, low: float, high: float) -> None:
    w = gaussian(64, 1024, 2)
    gain = np.sqrt(squares(uniform(name, range="rmse"), w).sum() / squares(uniform(name), w).sum())
    assert low < gain < high


@pytest.mark.parametrize("name", ["int2-g128", "int3-g64", "int4-g128", "int4", "int5-g128"])
@pytest.mark.parametrize("seed", [3, 4])
def test_no_worse_than_a_scan_of_2000_scales(name: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w = gaussian(24, 256, seed)
    if seed == 4:  # heavy tails
        w = w * (torch.rand(24, 256, generator=g).reciprocal().sqrt())
    f = uniform(name, range="rmse", scale_dtype="F32")
    ours, scan = squares(f, w), scanned(f, w)
    assert np.sqrt(ours.sum() / scan.sum()) < 1 + 1e-4
    assert np.sqrt(ours / scan).max() < 1.006
    # And a scan is all but exhaustive: much lower would mean that the sums are wrong.
    assert np.sqrt(ours.sum() / scan.sum()) > 0.998


def test_wide_codes_come_close_to_a_scan() -> None:
    w = gaussian(16, 256, 5)
    f = uniform("int8-g128", range="rmse", scale_dtype="F32")
    assert 0.99 < np.sqrt(squares(f, w).sum() / scanned(f, w).sum()) < 1.006


def test_no_worse_than_a_scan_under_importance() -> None:
    w, importance = gaussian(24, 256, 6), gaussian(1, 256, 7)[0].square() + 1e-3
    f = uniform("int4-g128", range="rmse", scale_dtype="F32")
    ours, scan = squares(f, w, importance), scanned(f, w, importance)
    assert 0.995 < np.sqrt(ours.sum() / scan.sum()) < 1 + 2e-4
    # Without importance the weights that matter are met less well.
    blind = (w.double() - f.quantize(w).dequantize().double()).square() @ importance.double()
    assert ours.sum() < 0.98 * blind.sum().item()


@pytest.mark.parametrize("name", ["int2-g128-asym", "int3-g128-asym", "int4-g128-asym"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_both_ends_are_searched(name: str, offset: float) -> None:
    w = gaussian(12, 256, 8) + offset
    f = uniform(name, range="rmse", scale_dtype="F32")
    ratio = np.sqrt(squares(f, w).sum() / scanned(f, w, tries=4000).sum())
    assert 0.99 < ratio < 1.006


@EVERY
def test_never_worse_than_the_whole_range(name: str) -> None:
    w = odd()
    importance = gaussian(1, 256, 9)[0].square()
    plain, found = uniform(name), uniform(name, range="rmse")
    for imp in (None, importance):
        before = squares(plain, w, imp)
        after = squares(found, w, imp)
        assert (after <= before * (1 + 1e-5) + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=8, max_size=8), st.sampled_from(["int2-g8", "int4-g8-asym"]))
def test_never_worse_on_any_group(values: list[float], name: str) -> None:
    w = torch.tensor([values])
    assert squares(uniform(name, range="rmse"), w)[0] <= squares(uniform(name), w)[0] * (1 + 1e-5) + 1e-12


@EVERY
def test_lanes_and_torch_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importance = gaussian(1, 256, 10)[0].square()
    for kind in ("rmse", "percentile"):
        f = uniform(name, range=kind, percentile=97.0)
        w = odd()
        quick = [f.quantize(w, imp).parts for imp in (None, importance)]
        with monkeypatch.context() as undo:
            undo.setattr(fitting, "on_lanes", lambda tensor: False)
            undo.setattr(ranges, "on_lanes", lambda tensor: False)
            slow = [f.quantize(w, imp).parts for imp in (None, importance)]
        for a, b in zip(quick, slow, strict=True):
            assert {k: torch.equal(v, b[k]) for k, v in a.items()} == dict.fromkeys(a, True)


@pytest.mark.parametrize("name", ["int4-tensor", "int4-tensor-asym", "int3-col", "int4-g128"])
def test_runs_in_segments_equal_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long runs are widened piece by piece; only their sums' order of blocks is the same, so the answer is."""
    w, importance = gaussian(40, 256, 11).to(torch.bfloat16), gaussian(1, 256, 12)[0].square()
    f = uniform(name, range="rmse")
    whole = [f.fit(w, imp) for imp in (None, importance)]
    monkeypatch.setattr(ranges, "SEGMENT", 3 * ranges.BLOCK)
    pieces = [f.fit(w, imp) for imp in (None, importance)]
    monkeypatch.setattr(ranges, "on_lanes", lambda tensor: False)
    slow = [f.fit(w, imp) for imp in (None, importance)]
    for grids in zip(whole, pieces, slow, strict=True):
        for other in grids[1:]:
            assert all(torch.equal(part, other[key]) for key, part in grids[0].parts.items())


@pytest.mark.parametrize("kind", ["rmse", "percentile"])
def test_row_slices_equal_the_whole(kind: str) -> None:
    w, importance = odd(), gaussian(1, 256, 13)[0].square()
    for name in ("int4-g128", "int4-asym"):
        f = uniform(name, range=kind)
        whole = f.quantize(w, importance).dequantize()
        assert torch.equal(torch.cat([f.quantize(p, importance).dequantize() for p in (w[:1], w[1:9], w[9:])]), whole)


@pytest.mark.parametrize("percent", [100.0, 99.9, 90.0, 37.5])
@pytest.mark.parametrize("shape", [(6, 1), (5, 2), (4, 100), (3, 1000)])
def test_percentile_is_numpys(percent: float, shape: tuple[int, int]) -> None:
    w = gaussian(*shape, 14)
    low, high = ranges.percentile_ends(w, percent)
    cut = (100 - percent) / 200
    assert np.allclose(low, np.quantile(w.double().numpy(), cut, axis=1), rtol=1e-6)
    assert np.allclose(high, np.quantile(w.double().numpy(), 1 - cut, axis=1), rtol=1e-6)


def test_the_percentile_cuts_both_ends() -> None:
    w = gaussian(4, 4096, 15)
    w[:, 0], w[:, 1] = 100.0, -50.0
    f = uniform("int4", range="percentile", percentile=99.9)
    scale = f.fit(w)["scale"].float()
    assert (scale < 5 / 7.5).all()
    assert (scale > 2.5 / 7.5).all()
    assert torch.equal(
        uniform("int4", range="percentile", percentile=100.0).fit(w)["scale"], uniform("int4").fit(w)["scale"]
    )


@pytest.mark.parametrize("kind", ["rmse", "percentile"])
@pytest.mark.parametrize("name", ["int4-g128", "int4-asym", "int4-tensor", "int4-col"])
def test_what_cannot_be_stored_is_refused_all_the_same(kind: str, name: str) -> None:
    f = uniform(name, range=kind)
    w = gaussian(4, 128, 16)
    w[2, 5] = float("nan")
    with pytest.raises(NonFinite, match="row 2"):
        f.quantize(w)
    w[2] = 1e7
    with pytest.raises(OutOfRange, match="row"):
        f.quantize(w)
    empty = f.quantize(torch.zeros(0, 128))
    assert empty.dequantize().shape == (0, 128)


def test_sizes_at_the_ends_of_float32() -> None:
    for size in (1e-38, 1e-30, 1e30, 1e37):
        for name in ("int4-g128", "int4-g128-asym"):
            f = uniform(name, range="rmse", scale_dtype="F32")
            w = gaussian(4, 128, 17)
            scale = f.fit(w * size)["scale"].double() / size
            assert torch.allclose(scale, f.fit(w)["scale"].double(), rtol=1e-4)


def test_columns_have_a_scale_each() -> None:
    f = uniform("int8-col", scale_dtype="F32")
    w = gaussian(300, 40, 18) * torch.logspace(-2, 2, 40)
    q = f.quantize(w)
    assert torch.equal(q.parts["scale"], w.abs().amax(0, keepdim=True) / torch.tensor(127.5))
    by_row = uniform("int8", scale_dtype="F32").quantize(w.t().contiguous())
    assert torch.equal(q.codes, by_row.codes.t())
    assert torch.equal(q.dequantize(), by_row.dequantize().t())
    assert f.row_multiple((300, 40)) == 0
    grid = f.fit(w)
    assert torch.equal(f.encode(w[100:], grid), q.codes[100:])


def test_unknown_ranges_are_refused() -> None:
    with pytest.raises(RecipeError, match="range 'mse' is not one of minmax, percentile, rmse"):
        uniform("int4", range="mse")
    with pytest.raises(RecipeError, match="percentile is 0, must be above 0"):
        uniform("int4", range="percentile", percentile=0.0)
    with pytest.raises(RecipeError, match="range 'rmse' is not one of minmax, percentile"):
        uniform("int4-g64-shift", range="rmse")
    shifted = uniform("int4-g64-shift", range="percentile", percentile=90.0)
    assert isinstance(shifted.fit(gaussian(2, 64)), Grid)
