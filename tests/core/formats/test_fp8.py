"""8-bit floats against compressed-tensors and torchao."""

from __future__ import annotations

import warnings

import pytest
import torch

from core.formats.fp8 import FP8, Fp8, byte_values
from tests.core.formats import laws

BY_NAME = {f.name: f for f in FP8}
ALL = pytest.mark.parametrize("f", FP8, ids=lambda f: f.name)


def test_names() -> None:
    assert list(BY_NAME) == [f"fp8-{kind}{end}" for kind in ("e4m3", "e5m2") for end in ("", "-tensor", "-b128")]
    assert len({f.title for f in FP8}) == len(FP8)


@ALL
def test_storage(f: Fp8) -> None:
    for shape in ((6, 40), (130, 300), (128, 128), (1, 1)):
        laws.check_storage(f, laws.weights(*shape))


@ALL
def test_columns_in_slices(f: Fp8) -> None:
    laws.check_columns(f, laws.weights(150, 300), (5, 128, 200))


@ALL
def test_extremes(f: Fp8) -> None:
    laws.check_extremes(f, 130)
    laws.check_half(f, 130)


@pytest.mark.parametrize("name", ["fp8-e4m3", "fp8-e5m2", "fp8-e4m3-b128"])
def test_row_slices_equal_the_whole(name: str) -> None:
    laws.check_rows(BY_NAME[name], laws.weights(300, 140))


def test_a_tensor_scale_needs_the_whole_tensor() -> None:
    f = BY_NAME["fp8-e4m3-tensor"]
    assert f.row_multiple((300, 140)) == 0
    assert not f.row_local


@ALL
def test_error_is_that_of_3_or_2_mantissa_bits(f: Fp8) -> None:
    w = torch.randn(256, 512, generator=torch.Generator().manual_seed(1))
    sqnr = laws.sqnr_db(w, f.quantize(w).dequantize())
    low, high = (31.0, 32.2) if "e4m3" in f.name else (25.0, 26.2)
    assert low < sqnr < high


def test_bytes_by_hand() -> None:
    q = BY_NAME["fp8-e4m3"].quantize(torch.tensor([[448.0, -1.0, 0.0, 2.0**-9, 17.0, 19.0]]))
    assert q.parts["scale"].tolist() == [[1.0]]
    # 17 and 19 lie between 16, 18 and 20: ties go to the even mantissa.
    assert q.parts["values"].view(torch.uint8).tolist() == [[0x7E, 0xB8, 0x00, 0x01, 0x58, 0x5A]]
    q = BY_NAME["fp8-e5m2-tensor"].quantize(torch.tensor([[57344.0, 1.0], [-2.0, 0.0]]))
    assert q.parts["values"].view(torch.uint8).tolist() == [[0x7B, 0x3C], [0xC0, 0x00]]


@pytest.mark.parametrize(("name", "strategy"), [("", "channel"), ("-tensor", "tensor"), ("-b128", "block")])
def test_equals_compressed_tensors(name: str, strategy: str) -> None:
    from compressed_tensors.quantization import QuantizationArgs, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    f = BY_NAME[f"fp8-e4m3{name}"]
    extra = {"block_structure": [128, 128]} if strategy == "block" else {}
    args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy, **extra)
    w = laws.weights(200, 300, seed=2)
    w[100] = 1e-5
    if strategy == "block":
        padded = torch.nn.functional.pad(w, (0, 84, 0, 56)).view(2, 128, 3, 128)
        low, high = padded.amin((1, 3)), padded.amax((1, 3))
    elif strategy == "tensor":
        low, high = w.amin().view(1), w.amax().view(1)
    else:
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    scale, zero = calculate_qparams(low, high, args)
    theirs = quantize(w, scale, zero, args, dtype=torch.float8_e4m3fn)
    ours = f.quantize(w).parts
    assert torch.equal(ours["scale"].reshape(scale.shape), scale)
    assert torch.equal(ours["values"].view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("f", [f for f in FP8 if f.granularity != "block"], ids=lambda f: f.name)
def test_equals_torchao(f: Fp8) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.quant_primitives import _choose_scale_float8, _quantize_affine_float8

    dtype = torch.float8_e4m3fn if f.dtype == "F8_E4M3" else torch.float8_e5m2
    w = torch.randn(64, 200, generator=torch.Generator().manual_seed(4)) * torch.logspace(-8, 4, 64)[:, None]
    scale = _choose_scale_float8(w, [1, 200] if f.granularity == "row" else [64, 200], dtype)
    ours = f.quantize(w).parts
    assert torch.equal(ours["scale"], scale)
    assert torch.equal(ours["values"].view(torch.uint8), _quantize_affine_float8(w, scale, dtype).view(torch.uint8))


def test_the_table_of_bytes_is_torchs() -> None:
    values = byte_values("F8_E4M3", torch.device("cpu"))
    assert values[0x7E] == 448
    assert values[0x7F].isnan()
    assert values[0x01] == 2.0**-9
