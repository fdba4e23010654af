"""Uniform levels with a bias: MLX's affine form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.formats import get_format
from core.formats.biased import BIASED, Biased, biased
from tests.core.formats import laws

ALL = pytest.mark.parametrize("f", BIASED, ids=lambda f: f.name)


def test_names() -> None:
    f = get_format("INT5-g32-bias")
    assert isinstance(f, Biased)
    assert (f.width, f.group, f.symmetric) == (5, 32, False)
    for wrong in ("int4-bias", "int4-row-bias", "int9-g64-bias", "int4-g64-asym-bias", "int4-g0-bias"):
        assert biased(wrong) is None


@ALL
def test_format_laws(f: Biased) -> None:
    w = laws.weights(30, 192)
    laws.check_storage(f, w)
    laws.check_columns(f, w, (5, 64, 130))
    laws.check_rows(f, w)
    assert f.bpw((64, 4096)) == f.width + 0.5


def mlx(w: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes from 0, scales and biases as MLX 0.32 computes them of float32 weights; written down from its results."""
    x, n = w.reshape(len(w), -1, group), np.float32(2**bits - 1)
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    upwards = np.abs(low) > np.abs(high)
    step = np.maximum((high - low) / n, np.float32(1e-7))
    step = np.where(upwards, step, -step)
    edge = np.where(upwards, low, high)
    whole = np.rint(edge / step)
    scale = np.where(whole != 0, edge / np.where(whole != 0, whole, 1), step)
    bias = np.where(whole != 0, edge, 0)
    return np.clip(np.rint((x - bias) / scale), 0, n).reshape(w.shape), scale[..., 0], bias[..., 0]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_float32_gives_what_mlx_gives(bits: int, group: int) -> None:
    w = torch.randn(9, 256, generator=torch.Generator().manual_seed(1))
    w[1] = w[1].abs()
    w[2] = -w[2].abs()
    w[3] = (w[3] * 4).round() / 4
    w[4, ::3] *= 40
    f = replace(get_format(f"int{bits}-g{group}-bias"), scale_dtype="F32")
    q = f.quantize(w)
    codes, scale, bias = mlx(w.numpy(), bits, group)
    assert np.array_equal(q.grid["scale"].numpy(), scale)
    assert np.array_equal(q.grid["bias"].numpy(), bias)
    assert np.array_equal(q.codes.short().numpy() - f.qmin, codes)


def test_levels_by_hand() -> None:
    f = biased("int2-g4-bias")
    assert f is not None
    q = f.quantize(torch.tensor([[-1.0, 0.0, 1.0, 2.0], [-1.5, -1.0, 0.2, 0.0], [0.5, 0.5, 0.5, 0.5], [0.0] * 4]))
    # Downwards from 2 in steps of 1; upwards from −1.5 in steps of 1.7 / 3, of which 3 lead to 0 with 0.5 each.
    assert q.parts["scale"].tolist() == [[-1.0], [0.5], [1.0], [1.0]]
    assert q.parts["bias"].tolist() == [[2.0], [-1.5], [0.5], [0.0]]
    assert q.dequantize().tolist() == [[-1.0, 0.0, 1.0, 2.0], [-1.5, -1.0, 0.0, 0.0], [0.5] * 4, [0.0] * 4]
    levels = f.levels(q.grid, 0, 0)
    assert levels is not None
    assert levels.tolist() == [-1.0, 0.0, 1.0, 2.0]


def test_tiny_groups_keep_their_weights() -> None:
    """Where MLX's guard of 1e-7 rounds them to zero."""
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(2)) * 1e-9
    f = replace(get_format("int8-g64-bias"), scale_dtype="F32")
    assert laws.sqnr_db(w, f.quantize(w).dequantize()) > 40


def test_error_is_near_that_of_whole_zero_points() -> None:
    w = torch.randn(128, 512, generator=torch.Generator().manual_seed(1))
    ours = get_format("int4-g64-bias").quantize(w).dequantize()
    whole = get_format("int4-g64-asym").quantize(w).dequantize()
    assert abs(laws.sqnr_db(w, ours) - laws.sqnr_db(w, whole)) < 0.6


def test_hqq_moves_scales_and_biases() -> None:
    """HQQ's own measure, Σ|e|^0.7, falls."""
    from core.methods import METHODS

    hqq = next(m for m in METHODS if m.name == "hqq")
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    f = get_format("int3-g64-bias")
    assert hqq.misfit(f) is None
    before, after = (
        float((w - q.dequantize()).abs().pow(0.7).sum()) for q in (f.quantize(w), hqq.quantize(w, f, {}, {}))
    )
    assert 0.8 < after / before < 0.99
