"""Kernels that read rows once (integers, 8-bit floats, NVFP4, NF4 and FP4) against the torch code they stand for: same
bytes for any shape, stride, type and size of weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import NonFinite
from core.formats import fitting, get_format
from core.formats.base import Format, Parts

NAMES = (
    *("int8", "int8-asym", "int4-g32", "int4-g128-asym", "int3-g64", "int2-g8-asym", "int5", "int6-g20", "int7-asym"),
    *("int4-g64-shift", "int8-tensor", "int4-tensor-asym", "int8-col", "int3-col-asym"),
    *("fp8-e4m3", "fp8-e5m2", "fp8-e4m3-tensor", "fp8-e5m2-b128", "mxfp8", "nvfp4", "nf4", "fp4", "nf4-dq", "llm-int8"),
)
NAMED = pytest.mark.parametrize("name", NAMES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One group, several, an incomplete last vector, rows of one and of very few; strips that end early.
SHAPES = ((5, 128), (131, 384), (3, 100), (4, 96), (2, 31), (3, 1), (7, 160), (1, 64), (2, 520))


def variants(f: Format) -> list[Format]:
    """The format with everything that a target may ask of it."""
    if f.family == "uniform":
        return [dataclasses.replace(f, scale_dtype=kind) for kind in ("F16", "BF16", "F32")]  # type: ignore[call-arg]
    if f.name == "mxfp8":
        return [dataclasses.replace(f, rule=rule) for rule in ("floor", "even", "rceil", "ceil")]  # type: ignore[call-arg]
    if f.name == "nvfp4":
        more = ({"power_of_two": True}, {"absmax": 0.5}, {"absmax": 1e30})
        return [f, *(dataclasses.replace(f, **m) for m in more)]
    if f.name == "fp8-e4m3-tensor":
        return [f, dataclasses.replace(f, absmax=0.5)]  # type: ignore[call-arg]
    return [f]


def drawn(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Weights of every size that scales can follow: zeros, ties, one sign only, subnormal numbers, large ones."""
    g = torch.Generator().manual_seed(seed)
    rows = shape[0]
    w = torch.randn(shape, generator=g) * 10.0 ** torch.randint(-6, 2, (rows, 1), generator=g)
    kind = seed % 8
    if kind == 1:
        w[:, ::3] = 0
        w[rows // 2] = -0.0
    elif kind == 2:
        w = w.abs()
    elif kind == 3:
        w = -w.abs()
    elif kind == 4:
        w = (w * 4).round() / 4
    elif kind == 5:
        w *= 1e-38
    elif kind == 6:
        w = w.clamp(-1, 1) * 1e38
    elif kind == 7:
        w[torch.rand(shape, generator=g) < 0.9] = 0
    return w


def equal(a: Parts, b: Parts) -> bool:
    def raw(t: torch.Tensor) -> torch.Tensor:
        return t.contiguous().reshape(-1).view(torch.uint8)

    return set(a) == set(b) and all(
        a[k].shape == b[k].shape and a[k].dtype == b[k].dtype and torch.equal(raw(a[k]), raw(b[k])) for k in a
    )


def outcome(f: Format, w: torch.Tensor) -> Parts | str:
    try:
        parts = f.quantize(w).parts
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return {**parts, "decoded": f.dequantize(parts, (w.shape[0], w.shape[1]))}


def agree(f: Format, w: torch.Tensor) -> None:
    quick = outcome(f, w)
    with pytest.MonkeyPatch.context() as undo:
        undo.setattr(fitting, "on_lanes", lambda tensor: False)
        slow = outcome(f, w)
    if isinstance(quick, str) or isinstance(slow, str):
        assert quick == slow
    else:
        assert equal(quick, slow)


@NAMED
def test_any_shape_and_size_of_weights(name: str) -> None:
    for f in variants(get_format(name)):
        for shape in SHAPES:
            if f.misfit(shape) is None:
                for seed in range(8):
                    agree(f, drawn(shape, seed))


@NAMED
def test_any_type_and_stride(name: str) -> None:
    f = get_format(name)
    for dtype in DTYPES:
        for shape in ((131, 384), (6, 96), (9, 640)):
            if f.misfit(shape) is not None:
                continue
            for seed in (0, 1, 4):
                w = drawn(shape, seed).to(dtype)
                for given_as in (w, torch.cat([w, w], 1)[:, : shape[1]], w.t().contiguous().t(), w.repeat(2, 1)[::2]):
                    agree(f, given_as)


def litter(columns: int) -> None:
    """Leaves freed memory of the sizes that a row needs full of ones: nobody may rely on what is in there."""
    left = [np.full(size, 0xFF, np.uint8) for size in range(columns, columns + 64) for _ in range(8)]
    del left


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 7, 8])
def test_bits_beyond_the_last_column_are_zero(width: int) -> None:
    f = get_format(f"int{width}-asym")
    for columns in range(1, 130):
        w = drawn((2, columns), 0)
        litter(columns)
        codes = f.quantize(w).parts["codes"].contiguous().view(torch.uint8).reshape(2, -1).numpy()
        bits = np.unpackbits(codes, axis=1, bitorder="little")
        assert not bits[:, columns * width :].any(), columns


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES), rows=st.integers(1, 5), runs=st.integers(1, 5), seed=st.integers(0, 10_000),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_drawn_weights(name: str, rows: int, runs: int, seed: int, dtype: torch.dtype) -> None:
    f = get_format(name)
    columns = runs * f.columns_per_grid if f.columns_per_grid > 1 else 37 * runs
    w = drawn((rows, columns), seed)
    agree(f, w.clamp(-6e4, 6e4).to(dtype))


@NAMED
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")], ids=str)
def test_the_row_of_a_number_that_is_none_is_named(name: str, dtype: torch.dtype, bad: float) -> None:
    f = get_format(name)
    columns = 2 * f.columns_per_grid if f.columns_per_grid > 1 else 83
    for column in (0, columns // 2, columns - 1):
        w = drawn((6, columns), 0).abs().to(dtype)
        w[4, column] = bad
        with pytest.raises(NonFinite, match="row 4") as caught:
            f.quantize(w)
        assert caught.value.row == 4


@pytest.mark.parametrize("name", ["fp8-e4m3", "fp8-e5m2", "mxfp8", "nvfp4"])
def test_every_byte_decodes_as_in_torch(name: str) -> None:
    """NaN and infinities of foreign files included."""
    f = get_format(name)
    parts = dict(f.quantize(torch.ones(2, 512)).parts)
    key = "codes" if name == "nvfp4" else "values"
    every = torch.arange(256, dtype=torch.uint8).repeat(parts[key].numel() // 256).view(parts[key].shape)
    parts[key] = every.view(parts[key].dtype)
    quick = f.dequantize(parts, (2, 512))
    with pytest.MonkeyPatch.context() as undo:
        undo.setattr(fitting, "on_lanes", lambda tensor: False)
        slow = f.dequantize(parts, (2, 512))
    assert torch.equal(quick.isnan(), slow.isnan())
    assert torch.equal(quick.nan_to_num().view(torch.int32), slow.nan_to_num().view(torch.int32))
