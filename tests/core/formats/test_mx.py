"""MXFP8 and NVFP4 against compressed-tensors and torchao."""

from __future__ import annotations

import warnings

import pytest
import torch

from core.errors import RecipeError
from core.formats import codebook as codebooks
from core.formats import fitting
from core.formats.codebook import e2m1
from core.formats.mx import MX, RULES, MxFp8, NvFp4, powers
from tests.core.formats import laws

MXFP8, NVFP4 = MxFp8("mxfp8"), NvFp4("nvfp4")
ALL = pytest.mark.parametrize("f", MX, ids=lambda f: f.name)


def wide(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows from 1e-12 to 1e6, and every mantissa as the largest of a group."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g) * torch.logspace(-12, 6, rows)[:, None]


@ALL
def test_storage(f: MxFp8 | NvFp4) -> None:
    for shape in ((6, 32), (130, 320), (1, 32)):
        laws.check_storage(f, laws.weights(*shape))
    assert f.bpw((64, 4096)) == pytest.approx({"mxfp8": 8.25, "nvfp4": 4.5}[f.name], abs=2e-4)
    assert f.misfit((4, 40)) == f"columns 40 is not a multiple of {f.columns_per_grid}"


@ALL
def test_columns_in_slices(f: MxFp8 | NvFp4) -> None:
    laws.check_columns(f, laws.weights(20, 160), (5, 32, 100))


@ALL
def test_extremes(f: MxFp8 | NvFp4) -> None:
    laws.check_extremes(f, 96)
    laws.check_half(f, 96)


def test_row_slices_equal_the_whole() -> None:
    laws.check_rows(MXFP8, laws.weights(20, 64))
    assert NVFP4.row_multiple((20, 64)) == 0


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(RecipeError, match="scale rule 'round' is not one of floor, even"):
        MxFp8("mxfp8", "round")


def test_rules_by_hand() -> None:
    size = torch.tensor([448.0, 449.0, 256.0, 257.0, 447.0, 511.0, 1.0])
    expected = {
        "floor": [127, 127, 127, 127, 127, 127, 119],
        "even": [128, 128, 127, 127, 127, 128, 119],
        "rceil": [127, 128, 127, 127, 127, 128, 119],
        "ceil": [128, 128, 127, 128, 128, 128, 119],
    }
    assert set(expected) == set(RULES)
    for rule, scales in expected.items():
        assert MxFp8("mxfp8", rule).scale_of(size).tolist() == scales
    ends = torch.tensor([0, 1, 127, 254], dtype=torch.uint8)
    assert powers(ends).tolist() == [2.0**-127, 2.0**-126, 1.0, 2.0**127]


@pytest.mark.parametrize("rule", ["floor", "rceil", "ceil"])
def test_mxfp8_equals_torchao(rule: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.mx_formats.config import ScaleCalculationMode
        from torchao.prototype.mx_formats.mx_tensor import to_mx

    w = wide(64, 256)
    w[7, 32:64] = 0
    scale, values = to_mx(w, torch.float8_e4m3fn, 32, ScaleCalculationMode[rule.upper()])
    parts = MxFp8("mxfp8", rule).quantize(w).parts
    assert torch.equal(parts["scale"], scale.view(torch.uint8))
    assert torch.equal(parts["values"].view(torch.uint8), values.view(torch.uint8))


def test_mxfp8_equals_compressed_tensors() -> None:
    from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(
        num_bits=8, type="float", symmetric=True, strategy="group", group_size=32, scale_dtype=torch.uint8
    )
    w = wide(64, 256, seed=1)
    groups = w.view(64, -1, 32)
    scale, _ = calculate_qparams(groups.amin(2), groups.amax(2), args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    stored = MXFP8QuantizationCompressor.compress({"weight": w, "weight_scale": scale}, scheme)
    parts = MXFP8.quantize(w).parts
    assert torch.equal(parts["scale"], stored["weight_scale"])
    assert torch.equal(parts["values"].view(torch.uint8), stored["weight"].view(torch.uint8))
    back = MXFP8QuantizationCompressor.decompress(stored, scheme)["weight"].float()
    ours = MXFP8.quantize(w).dequantize()
    assert torch.equal(ours.to(torch.bfloat16).float(), back)


def nvfp4_of_compressed_tensors(w: torch.Tensor) -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
    from compressed_tensors.quantization import QuantizationArgs, quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = QuantizationArgs(
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
    )
    total = generate_gparam(w.amin(), w.amax())
    groups = w.view(w.shape[0], -1, 16)
    scale, zero = calculate_qparams(groups.amin(2), groups.amax(2), args, global_scale=total)
    values = quantize(w, scale, zero, args, global_scale=total)
    return {
        "codes": pack_fp4_to_uint8(values),
        "scale": scale.to(torch.float8_e4m3fn),
        "inv_global_scale": total.view(1, 1),
    }


def test_nvfp4_equals_compressed_tensors() -> None:
    w = laws.weights(64, 256, seed=2)
    w[3, 16:32] = 0
    theirs = nvfp4_of_compressed_tensors(w)
    ours = NVFP4.quantize(w).parts
    assert set(ours) == set(theirs)
    for key, part in theirs.items():
        assert torch.equal(ours[key].view(torch.uint8), part.view(torch.uint8)), key


def test_nvfp4_decodes_as_compressed_tensors_decodes() -> None:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    w = laws.weights(32, 128, seed=3)
    q = NVFP4.quantize(w)
    levels = unpack_fp4_from_uint8(q.parts["codes"], 32, 128, dtype=torch.float32)
    step = (q.parts["scale"].float() / q.parts["inv_global_scale"]).repeat_interleave(16, 1)
    assert torch.equal(q.dequantize(), levels * step)


def test_nvfp4_against_torchao() -> None:
    """torchao multiplies by reciprocals and keeps a multiplier: the same up to ties."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(5))
    scale, codes = nvfp4_quantize(w, 16, per_tensor_scale=w.abs().max() / (448 * 6))
    ours = NVFP4.quantize(w).parts
    assert (ours["scale"].view(torch.uint8) != scale.view(torch.uint8)).float().mean() < 0.002
    assert (ours["codes"] != codes.view(torch.uint8)).float().mean() < 0.002


def test_nvfp4_keeps_groups_that_compressed_tensors_loses() -> None:
    w = torch.full((2, 32), 1e-5)
    w[0, 0] = 6 * 448 * 0.01  # the scale of the other groups would be below half of 2^-9
    back = NVFP4.quantize(w).dequantize()
    assert torch.allclose(back[1], w[1], rtol=0.2)
    tiny = torch.full((2, 32), 1e-37)
    assert torch.allclose(NVFP4.quantize(tiny).dequantize(), tiny, rtol=0.1)


def test_tensors_may_share_a_global_scale() -> None:
    q, k = laws.weights(8, 64, seed=1), laws.weights(8, 64, seed=2) * 3
    shared = NVFP4.inv_global_scale(torch.maximum(q.abs().max(), k.abs().max()))
    size = q.view(8, -1, 16).abs().amax(2)
    grid = NVFP4.grid_of(size, shared)
    back = NVFP4.decode(NVFP4.encode(q, grid), grid)
    assert 15 < laws.sqnr_db(q, back) < 25
    assert shared == NVFP4.fit(torch.cat((q, k)))["inv_global_scale"]


def test_e2m1_rounds_ties_to_even() -> None:
    book = e2m1()
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0])
    assert book.look_up(book.search(ties)).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    assert book.look_up(book.search(-ties)).tolist() == [0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0, -6.0]
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 3
    levels = torch.tensor(book.values)
    assert torch.equal((book.look_up(book.search(x)) - x).abs(), (levels[None] - x[:, None]).abs().amin(1))


@ALL
def test_error(f: MxFp8 | NvFp4) -> None:
    w = torch.randn(256, 512, generator=torch.Generator().manual_seed(1))
    sqnr = laws.sqnr_db(w, f.quantize(w).dequantize())
    low, high = {"mxfp8": (31.0, 32.2), "nvfp4": (20.0, 21.5)}[f.name]
    assert low < sqnr < high


def test_torch_reference_equals_the_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    w = laws.weights(50, 320, seed=4)
    fast = NVFP4.quantize(w)
    back = fast.dequantize()
    monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
    monkeypatch.setattr(codebooks, "PIECE", 1 << 10)
    slow = NVFP4.quantize(w)
    assert torch.equal(slow.dequantize(), back)
    for key, part in slow.parts.items():
        assert torch.equal(part.view(torch.uint8), fast.parts[key].view(torch.uint8))
