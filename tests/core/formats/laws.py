"""What holds for every format, as functions that a test of one format calls. (tests/contract walks the registry.)"""

from __future__ import annotations

import itertools

import pytest
import torch

from core.errors import NonFinite
from core.formats.base import Format, Parts


def weights(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Gaussian rows of different sizes with a few outliers and a row of zeros."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g) * torch.logspace(-3, 0, rows)[:, None]
    w[torch.rand(rows, columns, generator=g) < 0.002] *= 20
    w[rows // 2] = 0
    return w.to(dtype)


def sqnr_db(w: torch.Tensor, back: torch.Tensor) -> float:
    w, back = w.double(), back.double()
    return float(10 * torch.log10(w.square().sum() / (w - back).square().sum()))


def stored_bytes(parts: Parts) -> int:
    return sum(p.numel() * p.element_size() for p in parts.values())


def check_storage(f: Format, w: torch.Tensor) -> None:
    """Exact bytes, pack against unpack, decoding of parts against decoding of codes."""
    q = f.quantize(w)
    shape = (w.shape[0], w.shape[1])
    assert stored_bytes(q.parts) == f.nbytes(shape)
    codes, grid = f.unpack(q.parts, shape)
    again = f.pack(codes, grid)
    assert set(again) == set(q.parts)
    for key, part in q.parts.items():
        assert again[key].dtype == part.dtype
        assert again[key].shape == part.shape
        assert torch.equal(again[key].contiguous().view(torch.uint8), part.contiguous().view(torch.uint8)), key
    assert codes.shape == shape
    assert not codes.dtype.is_floating_point
    back = f.dequantize(q.parts, shape)
    assert back.dtype == torch.float32
    assert back.shape == shape
    assert torch.equal(back, f.decode(codes, grid))
    assert torch.equal(back, q.dequantize())


def check_columns(f: Format, w: torch.Tensor, cuts: tuple[int, ...]) -> None:
    """Columns encoded and decoded in slices equal the whole; every level is listed; nearest is nearest."""
    grid = f.fit(w)
    codes = f.encode(w, grid)
    back = f.decode(codes, grid)
    edges = (0, *cuts, w.shape[1])
    for a, b in itertools.pairwise(edges):
        part = f.encode(w[:, a:b], grid, a)
        assert torch.equal(part, codes[:, a:b])
        assert torch.equal(f.decode(part, grid, a), back[:, a:b])
    for row, column in ((0, 0), (w.shape[0] - 1, w.shape[1] - 1), (w.shape[0] // 2, w.shape[1] // 2)):
        levels = f.levels(grid, row, column)
        assert levels is not None
        assert (levels.diff() > 0).all()
        assert (levels == back[row, column]).any()
        distance = (levels.double() - w[row, column].double()).abs().min()
        assert abs((back[row, column].double() - w[row, column].double()).abs() - distance) <= 1e-6 * levels.abs().max()


def check_rows(f: Format, w: torch.Tensor) -> None:
    """Row slices at multiples of row_multiple equal the whole."""
    step = f.row_multiple(tuple(w.shape))
    assert step > 0
    assert f.row_local is False or step == 1
    whole = f.quantize(w).dequantize()
    assert w.shape[0] > step
    for start in range(0, w.shape[0], step):
        part = w[start : start + step]
        assert torch.equal(f.quantize(part).dequantize(), whole[start : start + step])


def check_extremes(f: Format, columns: int) -> None:
    """Zeros, constants, tiny and huge weights, NaN, Inf, nothing at all; doubling doubles."""
    zeros = f.quantize(torch.zeros(3, columns)).dequantize()
    assert (zeros == 0).all()
    for size in (1.0, 1e-6, 1e30):
        flat = torch.full((3, columns), size)
        assert torch.allclose(f.quantize(flat).dequantize(), flat, rtol=0.15)
        assert torch.allclose(f.quantize(-flat).dequantize(), -flat, rtol=0.15)
    w = weights(6, columns, seed=5)
    assert torch.equal(f.quantize(w * 2).dequantize(), f.quantize(w).dequantize() * 2)
    biggest = torch.full((2, columns), torch.finfo(torch.float32).max)
    biggest[0, 0] = -biggest[0, 0]
    assert f.quantize(biggest).dequantize().isfinite().all()
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = weights(5, columns)
        broken[3, columns - 1] = bad
        with pytest.raises(NonFinite, match="row 3") as caught:
            f.quantize(broken)
        assert caught.value.row == 3
        with pytest.raises(NonFinite):
            f.fit(broken)
    empty = f.quantize(torch.zeros(0, columns))
    assert stored_bytes(empty.parts) == f.nbytes((0, columns))
    assert empty.dequantize().shape == (0, columns)


def check_half(f: Format, columns: int) -> None:
    """Half-precision input equals the same weights widened first."""
    for dtype in (torch.bfloat16, torch.float16):
        w = weights(9, columns, seed=3, dtype=dtype)
        assert torch.equal(f.quantize(w).dequantize(), f.quantize(w.float()).dequantize())
