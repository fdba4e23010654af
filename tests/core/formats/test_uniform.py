"""Uniform formats against compressed-tensors: scales, zero points, codes and packed words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import OutOfRange, RecipeError
from core.formats import get_format
from core.formats.bitstream import pack_rows, unpack_rows, words_per_row
from core.formats.uniform import Uniform

WIDTHS = pytest.mark.parametrize("width", range(2, 9))
ENDS = pytest.mark.parametrize("end", ["", "-asym", "-g128", "-g128-asym", "-tensor", "-tensor-asym"])


def weights(rows: int = 12, columns: int = 256) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    w = torch.randn(rows, columns, generator=g) * 0.02
    w[1] = w[1].abs()
    w[2] = -w[2].abs()
    w[3, -1] = 1.5
    return w


def f32(name: str) -> Uniform:
    """With scales as compressed-tensors computes them."""
    f = get_format(name)
    assert isinstance(f, Uniform)
    return dataclasses.replace(f, scale_dtype="F32")


def arguments(f: Uniform):  # type: ignore[no-untyped-def]
    from compressed_tensors.quantization.quant_args import QuantizationArgs

    strategy = {"tensor": "tensor", "row": "channel", "group": "group"}[f.granularity]
    group = {"group_size": f.group} if f.group else {}
    return QuantizationArgs(num_bits=f.width, type="int", symmetric=f.symmetric, strategy=strategy, **group)


@WIDTHS
@ENDS
def test_grid_and_codes_are_compressed_tensors(width: int, end: str) -> None:
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    f = f32(f"int{width}{end}")
    w = weights()
    shape = f.scales_shape(tuple(w.shape))
    runs = w.reshape(*shape, -1)
    scale, zero = calculate_qparams(runs.amin(-1), runs.amax(-1), arguments(f))
    q = f.quantize(w)
    assert torch.equal(q.grid["scale"], scale)
    if not f.symmetric:
        assert torch.equal(q.grid["zero_point"], zero.to(torch.int8))
    theirs = quantize(w, scale, zero, arguments(f), dtype=torch.int8)
    assert torch.equal(q.codes, theirs)
    assert torch.equal(q.dequantize(), dequantize(theirs, scale, zero, arguments(f)))


@WIDTHS
@pytest.mark.parametrize("columns", [256, 100, 31, 1])
def test_packed_words_are_compressed_tensors(width: int, columns: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    f = f32(f"int{width}")
    q = f.quantize(weights(5, columns))
    packed = q.parts["codes"]
    assert torch.equal(packed, pack_to_int32(q.codes, width))
    assert torch.equal(unpack_from_int32(packed, width, q.codes.shape), q.codes)
    assert packed.shape == (5, words_per_row(columns, width))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(2, 8), rows=st.integers(1, 4), columns=st.integers(1, 100), seed=st.integers(0, 99))
def test_bitstream_round_trip(width: int, rows: int, columns: int, seed: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 1 << width, (rows, columns)).astype(np.int16))
    words = pack_rows(codes, width)
    assert torch.equal(unpack_rows(words, width, columns).short(), codes)
    # The definition: code k occupies bits k·b … of the row's little-endian stream.
    for row, line in zip(codes.tolist(), words.tolist(), strict=True):
        whole = sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(line))
        assert [(whole >> (k * width)) & ((1 << width) - 1) for k in range(columns)] == row


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["int4-g128", "int4-g128-asym", "int8"])
def test_codes_are_chosen_for_the_stored_scale(name: str, dtype: str) -> None:
    f = dataclasses.replace(get_format(name), scale_dtype=dtype)
    w = weights()
    q = f.quantize(w)
    assert (
        str(q.parts["scale"].dtype) == {"F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}[dtype]
    )
    assert sum(p.numel() * p.element_size() for p in q.parts.values()) == f.nbytes(tuple(w.shape))
    group = f.group or w.shape[1]
    step = q.parts["scale"].double().repeat_interleave(group, 1)
    away = (w.double() - q.dequantize().double()).abs()
    inside = (q.codes > f.qmin) & (q.codes < f.qmax)
    assert (away <= step / 2 * (1 + 1e-6))[inside].all()


def test_zero_groups_and_scales_too_small_for_their_type() -> None:
    w = torch.zeros(3, 256)
    w[1, 128:] = 1e-12
    w[2, :128] = 1e-7
    for name in ("int4-g128", "int4-g128-asym"):
        f = get_format(name)
        q = f.quantize(w)
        scale = q.grid["scale"]
        assert scale.dtype == torch.float16
        assert scale[0].tolist() == [1.0, 1.0]
        assert scale[1, 1].item() == 2.0**-24
        assert (q.dequantize()[0] == 0).all()
        assert (q.dequantize() - w).abs().max() <= 2.0**-24


def test_a_scale_beyond_its_type_is_refused_by_row() -> None:
    w = weights()
    w[9, 3] = 6e5
    assert get_format("int4").quantize(w * 0.5).dequantize().isfinite().all()
    with pytest.raises(OutOfRange, match="row 9 needs a scale beyond 65504, the largest of F16") as caught:
        get_format("int4").quantize(w)
    assert caught.value.row == 9
    assert f32("int4").quantize(w).dequantize().isfinite().all()


def test_extremes_of_float32_are_stored_or_refused() -> None:
    """Opposite extremes overflow the difference; the level below −absmax may lie beyond float32."""
    w = torch.full((2, 128), 3e38)
    w[1, ::2] = -3e38
    for name in ("int8", "int8-asym", "int4-g128"):
        back = f32(name).quantize(w).dequantize()
        assert back.isfinite().all()
        assert ((back - w).abs() / 3e38 < 0.6).all()
    w[1, 0] = -3.4e38
    with pytest.raises(OutOfRange, match="row 1 needs a scale beyond float32's range"):
        f32("int8").quantize(w)


def test_groups_must_divide_columns() -> None:
    assert get_format("int4-g128").misfit((4, 200)) == "columns 200 is not a multiple of 128"
    assert get_format("int4-g100").misfit((4, 200)) is None
    assert get_format("int4").misfit((4, 7)) is None


def test_unknown_scale_type_is_refused() -> None:
    with pytest.raises(RecipeError, match="scale dtype 'F8' is not one of F32, F16, BF16"):
        dataclasses.replace(get_format("int4"), scale_dtype="F8")
