"""What every listed format promises, walked over the registry: a new format is tested by being listed.

Quality windows are two-sided: too good is a bug as well. They are RMSE / σ on Gaussian weights: llama.cpp's figures for
GGML types, a brute-force search over the levels in float64 for uniform ones, measured figures for the others.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import core.formats.fitting as fitting
from core.errors import CalibrationError, NonFinite, OutOfRange, RecipeError
from core.formats import FORMATS, Format, Quantized, get_format
from core.formats.biased import Biased
from core.formats.shifted import Shifted
from core.formats.uniform import Uniform

WRITTEN = [f for f in FORMATS if f.encodable]
EVERY = pytest.mark.parametrize("f", WRITTEN, ids=lambda f: f.name)
COLUMNS = 512

# RMSE / σ. GGML: llama.cpp's own. 8-bit floats: about 2^-(m+1)/√3 for m mantissa bits, averaged over a binade. The
# others: measured once on 4 M weights.
ANCHORS = {
    **dict.fromkeys(("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-b128", "mxfp8"), 0.0264),
    **dict.fromkeys(("fp8-e5m2", "fp8-e5m2-tensor", "fp8-e5m2-b128"), 0.0527),
    **dict.fromkeys(("nf4", "nf4-dq"), 0.092),
    **dict.fromkeys(("fp4", "fp4-dq"), 0.122),
    # A row of 1024 reaches 3.5 σ: that / 127 / √12; a little less without its 16 worst columns.
    "llm-int8": 0.0079,
    "llm-int8-o16": 0.0076,
    "nvfp4": 0.095,
    "f32": 0.0,
    "f16": 0.000204,
    "bf16": 0.001645,
    "q8_0": 0.0053,
    "q6_k": 0.0178,
    "q5_k": 0.0362,
    "q5_1": 0.0382,
    "q5_0": 0.0420,
    "q4_k": 0.0717,
    "iq4_nl": 0.0771,
    "iq4_xs": 0.0777,
    "q4_1": 0.0785,
    "q4_0": 0.0871,
    "mxfp4": 0.118,
    "q3_k": 0.153,
    "iq3_s": 0.166,
    "iq3_xxs": 0.213,
    "iq2_s": 0.265,
    # With equal importance of all columns, which they cannot do without.
    "iq2_xs": 0.2996,
    "iq2_xxs": 0.3438,
    "q2_k": 0.296,
    # llama.cpp's bytes of 1 M weights; IQ1_S with equal importance.
    "iq1_s": 0.485,
    "iq1_m": 0.582,
    # Three levels at the largest of 256 or 64 weights: llama.cpp's bytes of 4 M weights. Signs: √(1 − 2/π).
    **dict.fromkeys(("tq1_0", "tq2_0"), 0.806),
    "q2_0": 0.717,
    "q1_0": 0.6028,
}
WINDOW = 0.03


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def rmse(w: torch.Tensor, back: torch.Tensor) -> float:
    return float((w.double() - back.double()).square().mean().sqrt())


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def brute_force(f: Uniform, w: torch.Tensor) -> torch.Tensor:
    """Every weight on the nearest of all levels, float64, from the definition in words: no scale is rounded."""
    if f.granularity == "column":
        return brute_force(replace(f, granularity="row"), w.t()).t()
    rows, columns = w.shape
    shape = {"tensor": (1, 1), "row": (rows, 1)}.get(f.granularity, (rows, columns // max(1, f.group)))
    x = w.double().reshape(*shape, -1)
    q = torch.arange(f.qmin, f.qmax + 1, dtype=torch.float64)
    if isinstance(f, Biased):
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        edge = torch.where(low.abs() > high.abs(), low, high)
        step = edge / (edge.abs() / (high - low) * (2**f.width - 1)).round()
        levels = edge - step.abs() * edge.sign() * (q - f.qmin)
    elif f.symmetric:
        levels = x.abs().amax(-1, keepdim=True) / ((2**f.width - 1) / 2) * q
    else:
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        step = (high - low) / (2**f.width - 1)
        zero = f.qmin - low / step
        levels = step * (q - (zero if isinstance(f, Shifted) else zero.round()))
    best = torch.full_like(x, math.inf)
    for level in levels.unbind(-1):
        e = x - level[..., None]
        best = torch.where(e.abs() < best.abs(), e, best)
    return (x - best).reshape(rows, columns)


def needed(f: Format, w: torch.Tensor) -> torch.Tensor | None:
    """Equal importance of all columns where the format cannot be fitted without any."""
    return torch.ones(w.shape[1]) if f.needs_importance else None


def quantized(f: Format, w: torch.Tensor) -> Quantized:
    return f.quantize(w, needed(f, w))


def stored_or_refused(f: Format, w: torch.Tensor) -> tuple[torch.Tensor | None, OutOfRange | None]:
    try:
        return quantized(f, w).dequantize(), None
    except OutOfRange as error:
        return None, error


@EVERY
def test_declared_bytes_are_stored_bytes(f: Format) -> None:
    w = gaussian(5, COLUMNS)
    parts = quantized(f, w).parts
    stored = sum(p.numel() * p.element_size() for p in parts.values())
    assert stored == f.nbytes((5, COLUMNS))
    assert f.bpw((5, COLUMNS)) == 8 * stored / w.numel()
    assert f.misfit((5, COLUMNS)) is None
    if f.columns_per_grid > 1:
        assert f.misfit((5, f.columns_per_grid + 1)) == (
            f"columns {f.columns_per_grid + 1} is not a multiple of {f.columns_per_grid}"
        )


@EVERY
def test_parts_codes_and_grid_are_the_same_thing(f: Format) -> None:
    shape = (5, COLUMNS)
    q = quantized(f, gaussian(*shape, seed=1))
    codes, grid = f.unpack(q.parts, shape)
    assert codes.shape == shape
    assert not codes.dtype.is_floating_point
    again = f.pack(codes, grid)
    assert {k: same(v, again[k]) for k, v in q.parts.items()} == dict.fromkeys(q.parts, True)
    back = f.dequantize(q.parts, shape)
    assert back.dtype == torch.float32
    assert torch.equal(back, f.decode(codes, grid))
    assert torch.equal(back, q.dequantize())


@EVERY
def test_codes_are_in_range(f: Format) -> None:
    w = gaussian(4, COLUMNS, seed=2)
    w[0] *= 100
    w[1, ::7] = 1e4
    codes = quantized(f, w).codes.long()
    if isinstance(f, Uniform):
        assert f.qmin <= codes.min() <= codes.max() <= f.qmax
    layout = getattr(f, "layout", None)
    if layout is not None:
        assert layout.qmin <= codes.min() <= codes.max() <= layout.qmax


@EVERY
def test_quality_is_in_its_window(f: Format) -> None:
    w = gaussian(128, 1024, seed=3)
    measured = rmse(w, quantized(f, w).dequantize())
    if isinstance(f, Uniform):
        expected, window = rmse(w, brute_force(f, w)), 0.004
    elif f.name in ANCHORS:
        expected, window = ANCHORS[f.name], WINDOW
    else:
        pytest.fail(f"no anchor for {f.name}: measure it against something independent and add it")
    assert (1 - window) * expected <= measured <= (1 + window) * expected


@EVERY
def test_nearest_levels_beat_other_levels(f: Format) -> None:
    """In the fitted grid no weight lies closer to another level, and the stored value is a level. (Where weights are
    coded together only the latter.)"""
    w = gaussian(3, COLUMNS, seed=4)
    q = quantized(f, w)
    for row, column in ((0, 0), (1, 300), (2, COLUMNS - 1)):
        levels = f.levels(q.grid, row, column)
        if levels is None:
            continue
        assert (levels.diff() >= 0).all()
        assert (levels == q.dequantize()[row, column]).any()
        if f.columns_per_code > 1:
            continue
        nearest = f.decode(f.encode(w, q.grid), q.grid)[row, column].double()
        target = w[row, column].double()
        assert abs(nearest - target) <= (levels.double() - target).abs().min() + 1e-6 * levels.abs().max()


@EVERY
def test_columns_in_slices_equal_the_whole(f: Format) -> None:
    w = gaussian(3, COLUMNS, seed=5)
    grid = f.fit(w, needed(f, w))
    codes = f.encode(w, grid)
    back = f.decode(codes, grid)
    cuts = (0, 1, 40, 300, COLUMNS) if f.columns_per_code == 1 else (0, 8, 40, 304, COLUMNS)
    assert all(cut % f.columns_per_code == 0 for cut in cuts)
    for start, stop in pairwise(cuts):
        a, b = (-(-at // f.columns_per_code) * f.columns_per_code for at in (start, stop))
        assert torch.equal(f.encode(w[:, a:b], grid, a), codes[:, a:b])
        assert torch.equal(f.decode(codes[:, start:stop], grid, start), back[:, start:stop])


@EVERY
def test_row_slices_equal_the_whole(f: Format) -> None:
    w = gaussian(9, COLUMNS, seed=6)
    if not f.row_local:
        return
    whole = quantized(f, w).dequantize()
    parts = [quantized(f, piece).dequantize() for piece in (w[:1], w[1:5], w[5:])]
    assert torch.equal(torch.cat(parts), whole)


@EVERY
def test_doubling_weights_doubles_the_output(f: Format) -> None:
    w = gaussian(4, COLUMNS, seed=7)
    assert torch.equal(quantized(f, w * 2).dequantize(), quantized(f, w).dequantize() * 2)


@EVERY
def test_zero_constant_and_tiny_rows(f: Format) -> None:
    w = gaussian(7, COLUMNS, seed=8)
    w[0] = 0
    w[1] = 0.37
    w[2] = -0.37
    w[3] *= 1e-6
    w[4] *= 1e-30
    w[5] = w[5].abs()
    q = quantized(f, w)
    back = q.dequantize()
    assert back.isfinite().all()
    if not f.row_local:  # statistics shared with the other rows: its own tests know what to expect
        return
    assert (back[0] == 0).all()
    error = (back - w).abs().amax(1)
    # A two-bit symmetric grid puts a constant half of its size away from the nearest level, a lattice some more of it.
    assert (error[1:3] <= 0.37 * (0.51 if f.columns_per_code == 1 else 0.71)).all()
    # 16-bit scales are multiples of 2^-24, and up to 63 · 31 of them make a weight: tiny ones come out coarse, or 0.
    reach = 2.0**-25 * 63 * 31
    assert error[3] <= reach
    assert error[4] <= reach
    assert (back[4].abs() <= reach).all()


@EVERY
def test_all_zero_tensor_and_no_rows(f: Format) -> None:
    zeros = quantized(f, torch.zeros(2, COLUMNS)).dequantize()
    assert (zeros == 0).all()
    none = quantized(f, torch.zeros(0, COLUMNS))
    assert none.dequantize().shape == (0, COLUMNS)
    assert sum(p.numel() * p.element_size() for p in none.parts.values()) == f.nbytes((0, COLUMNS))


@EVERY
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_weights_that_are_not_finite_are_named(f: Format, bad: float) -> None:
    w = gaussian(6, COLUMNS, seed=9)
    w[4, 77] = bad
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for call in (f.quantize, f.fit):
            with pytest.raises(NonFinite, match="row 4 holds NaN or Inf") as caught:
                call(w.to(dtype), needed(f, w))
            assert caught.value.row == 4


@EVERY
def test_float64_beyond_float32_is_refused_by_row(f: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(6, COLUMNS, seed=9).double()
    w[4, 77] = 1e300
    for _ in range(2):
        for call in (f.quantize, f.fit):
            with pytest.raises((NonFinite, OutOfRange), match="row 4 ") as caught:
                call(w, needed(f, w.float().nan_to_num(posinf=1.0)))
            assert caught.value.row == 4
        monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)


@EVERY
def test_huge_weights_are_stored_or_refused_by_row(f: Format) -> None:
    """Never a value that is not finite in the output."""
    w = gaussian(5, COLUMNS, seed=10)
    w[2] *= 1e36
    back, refused = stored_or_refused(f, w)
    if (f.family == "ggml" and f.name != "mxfp4") or f.name == "f16" or getattr(f, "scale_dtype", "") == "F16":
        assert refused is not None
    if refused is not None:
        assert "row" in str(refused)
        assert refused.row == 2 or not f.row_local
    if back is not None:
        assert back.isfinite().all()
        assert rmse(w[2:3] / 1e36, back[2:3] / 1e36) < 0.8


@EVERY
def test_half_precision_input_equals_the_same_weights_widened(f: Format) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        w = gaussian(5, COLUMNS, seed=11).to(dtype)
        ours, wide = quantized(f, w).parts, quantized(f, w.to(torch.float32)).parts
        assert all(same(ours[k], wide[k]) for k in wide)


@EVERY
def test_lanes_and_reference_agree(f: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(37, COLUMNS, seed=12)
    w[3] = 0
    w[4] = -0.25
    w[5] = w[5].abs()
    w[6, :100] = 0
    w[7] *= 1e-7
    importance = gaussian(1, COLUMNS, seed=13)[0].abs() + 0.01
    quick = [quantized(f, w), f.quantize(w, importance)]
    back = [q.dequantize() for q in quick]
    monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
    for q, values, given in zip(quick, back, (needed(f, w), importance), strict=True):
        slow = f.quantize(w, given)
        assert all(same(q.parts[k], slow.parts[k]) for k in q.parts)
        assert torch.equal(slow.dequantize(), values)


@EVERY
def test_same_input_same_bytes(f: Format) -> None:
    w = gaussian(8, COLUMNS, seed=14)
    first, second = quantized(f, w.clone()).parts, quantized(f, w.clone()).parts
    assert all(same(first[k], second[k]) for k in first)
    strided = torch.stack((w, w), 1)[:, 0]
    assert not strided.is_contiguous()
    third = quantized(f, strided).parts
    assert all(same(first[k], third[k]) for k in first)


@EVERY
def test_columns_without_importance_are_not_erased(f: Format) -> None:
    w = gaussian(4, COLUMNS, seed=15)
    importance = torch.ones(COLUMNS)
    importance[:256] = 0
    back = f.quantize(w, importance).dequantize()
    assert rmse(w[:, :256], back[:, :256]) < 0.85
    nothing = f.quantize(w, torch.zeros(COLUMNS)).dequantize()
    assert torch.equal(nothing, f.quantize(w, torch.ones(COLUMNS)).dequantize())


@pytest.mark.parametrize("f", [f for f in WRITTEN if f.needs_importance], ids=lambda f: f.name)
def test_without_importance_nothing_is_written_where_it_is_needed(f: Format) -> None:
    for call in (f.quantize, f.fit):
        with pytest.raises(CalibrationError, match=f"{f.name} needs importance"):
            call(gaussian(2, COLUMNS))


def test_names() -> None:
    names = [f.name for f in FORMATS]
    assert len(set(names)) == len(names)
    for f in FORMATS:
        assert get_format(f.name) is f
        assert get_format(f.name.upper()) is f
        assert f.title
        assert f.family
        assert f.bits > 0
        assert hash(f) == hash(get_format(f.name))


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("int4-row", "int4"),
        ("INT8-row-asym", "int8-asym"),
        ("int5-g48", "int5-g48"),
        ("int4-col-asym", "int4-col-asym"),
    ],
)
def test_names_beyond_the_list(name: str, canonical: str) -> None:
    assert get_format(name).name == canonical


@pytest.mark.parametrize(
    ("name", "hint"), [("q4k", "q4_k"), ("int9", "int"), ("int4-g0", "int4"), ("qq_17", ""), ("", "list")]
)
def test_unknown_names_suggest(name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match="unknown format") as caught:
        get_format(name)
    assert hint in caught.value.hint
