"""LLM.int8() against bitsandbytes."""

from __future__ import annotations

import pytest
import torch

from core.errors import OutOfRange
from core.formats.llm_int8 import LLM_INT8, LlmInt8, llm_int8
from tests.core.formats import laws

PLAIN, KEPT = LlmInt8("llm-int8"), LlmInt8("llm-int8-o3", 3)
BOTH = pytest.mark.parametrize("f", [PLAIN, KEPT], ids=lambda f: f.name)


def test_names() -> None:
    assert [f.name for f in LLM_INT8] == ["llm-int8", "llm-int8-o16"]
    for f in LLM_INT8:
        assert llm_int8(f.name) == f
    assert llm_int8("llm-int8-o3") == KEPT
    for wrong in ("llm-int8-o0", "llm-int8-o", "llm-int8-o123456", "llm-int4"):
        assert llm_int8(wrong) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_codes_equal_bitsandbytes(dtype: torch.dtype) -> None:
    import bitsandbytes.functional as bnb

    g = torch.Generator().manual_seed(2)
    w = torch.randn(64, 200, generator=g) * torch.logspace(-9, 4, 64)[:, None]
    w[3] = 0
    w[4] = torch.arange(200) - 99.5  # ties: half codes
    w[4, 0] = -127
    w[5] = 2.0**-24  # the smallest half
    w[6] = 2.0**-26  # less than half of it
    w[7, 0] = 65280
    w = w.to(dtype)
    codes, absmax, _ = bnb.int8_vectorwise_quant(w.float().to(torch.float16))
    parts = PLAIN.quantize(w).parts
    assert torch.equal(parts["absmax"].view(-1), absmax)
    assert torch.equal(parts["codes"], codes)
    assert torch.equal(PLAIN.quantize(w).dequantize(), bnb.int8_vectorwise_dequant(codes, absmax))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_outliers_at_the_threshold_equal_bitsandbytes(count: int) -> None:
    """Its decomposition of an activation matrix: columns that reach 6.0 come out as codes of 0, and what is left is
    quantized as if they were not there. Ours keeps the same columns when it is told to keep as many."""
    import bitsandbytes.functional as bnb

    columns = [3, 17, 20, 44, 63][:count]
    w = torch.randn(32, 64, generator=torch.Generator().manual_seed(6)).clamp(-5, 5)
    for column in columns:
        w[:, column] = 6.0 + column  # the whole column: bitsandbytes zeroes single elements before it takes the absmax
    codes, absmax, found = bnb.int8_vectorwise_quant(w.half(), threshold=6.0)
    assert found is not None
    assert found.tolist() == columns
    f, remark = LlmInt8(f"llm-int8-o{count}", count).by_activations(w.abs().amax(0))
    assert remark == ""
    parts = f.quantize(w).parts
    assert torch.equal(parts["codes"], codes)
    assert torch.equal(parts["absmax"].view(-1), absmax)
    if count:
        assert parts["outlier_columns"].tolist() == [columns]
        assert torch.equal(parts["outlier_values"], w[:, columns].half())


def test_activations_say_which_columns() -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(7))
    w[:, 10] *= 50
    absmax = torch.ones(64)
    absmax[[20, 40]] = 7.0
    f, remark = KEPT.by_activations(absmax)
    # Two reach 6.0; the third place goes to the first of the largest others.
    assert f.quantize(w).parts["outlier_columns"].tolist() == [[0, 20, 40]]
    assert remark == ""
    assert f.name == KEPT.name
    assert f.nbytes((16, 64)) == laws.stored_bytes(f.quantize(w).parts) == KEPT.nbytes((16, 64))
    laws.check_rows(f, w)
    absmax[[1, 2]] = 6.0
    f, remark = KEPT.by_activations(absmax)
    assert f.chosen == (1, 20, 40)
    assert remark == "4 input channels reach 6, the 3 largest are kept in 16 bits"
    assert PLAIN.by_activations(absmax) == (PLAIN, "")


def test_activations_that_make_no_sense_are_refused() -> None:
    from core.errors import CalibrationError

    with pytest.raises(CalibrationError, match="negative, NaN or infinite"):
        KEPT.by_activations(torch.full((64,), float("nan")))
    f, _ = KEPT.by_activations(torch.arange(100.0))
    with pytest.raises(CalibrationError, match="speak of column 99, the tensor has 64"):
        f.quantize(torch.ones(2, 64))


@BOTH
def test_storage(f: LlmInt8) -> None:
    for shape in ((6, 40), (130, 300), (1, 4)):
        laws.check_storage(f, laws.weights(*shape))


@BOTH
def test_columns_in_slices(f: LlmInt8) -> None:
    w = laws.weights(30, 100)
    w[:, 7] = 5
    w[:, 60] = -6
    laws.check_columns(f, w, (5, 7, 64, 70))


@BOTH
def test_extremes(f: LlmInt8) -> None:
    if f is PLAIN:
        laws.check_half(f, 64)
        laws.check_rows(f, laws.weights(20, 64))
    w = laws.weights(5, 64)
    assert torch.equal(f.quantize(w * 2).dequantize(), f.quantize(w).dequantize() * 2)
    assert (f.quantize(torch.zeros(3, 64)).dequantize() == 0).all()
    for size in (1e-5, 1.0, 6e4):
        flat = torch.full((3, 64), size)
        assert torch.allclose(f.quantize(flat).dequantize(), flat, rtol=0.05)
    huge = torch.full((3, 64), 3e38)
    huge[0] = 1
    with pytest.raises(OutOfRange, match="row 1") as caught:
        f.quantize(huge)
    assert caught.value.row == 1
    with pytest.raises(OutOfRange, match="row 2 holds weights beyond 65504"):
        f.quantize(torch.tensor([[1.0], [65519.0], [65520.0]]).expand(3, 64))
    tiny = torch.full((3, 64), 1e-40)
    assert (f.quantize(tiny).dequantize() == 0).all()


@BOTH
def test_non_finite_weights_are_refused(f: LlmInt8) -> None:
    from core.errors import NonFinite

    w = laws.weights(5, 64)
    w[3, 2] = float("nan")
    with pytest.raises(NonFinite, match="row 3"):
        f.quantize(w)


def test_outlier_columns_are_kept() -> None:
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))
    w[:, [3, 100, 255]] *= 30
    q = KEPT.quantize(w)
    assert q.parts["outlier_columns"].tolist() == [[3, 100, 255]]
    assert (q.codes[:, [3, 100, 255]] == 0).all()
    assert torch.equal(q.dequantize()[:, 100], w[:, 100].half().float())
    plain = PLAIN.quantize(w).dequantize()
    rest = [c for c in range(256) if c not in (3, 100, 255)]
    gain = laws.sqnr_db(w[:, rest], q.dequantize()[:, rest]) - laws.sqnr_db(w[:, rest], plain[:, rest])
    assert 20 < gain < 35
    assert KEPT.levels(q.grid, 0, 100) is None
    assert KEPT.row_multiple((64, 256)) == 0


def test_importance_says_which_columns() -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(5))
    w[:, 10] *= 50
    importance = torch.ones(64)
    importance[[20, 40, 60]] = 36.0
    assert KEPT.quantize(w, importance).parts["outlier_columns"].tolist() == [[20, 40, 60]]
    assert PLAIN.quantize(w, importance).parts["absmax"].equal(PLAIN.quantize(w).parts["absmax"])
    assert KEPT.worst_columns(torch.ones(4, 9)).tolist() == [0, 1, 2]


def test_too_narrow_matrices_do_not_fit() -> None:
    assert KEPT.misfit((8, 3)) == "columns 3 leave nothing beside 3 outlier columns"
    assert KEPT.misfit((8, 4)) is None
    assert PLAIN.misfit((8, 1)) is None


def test_error() -> None:
    w = torch.randn(256, 512, generator=torch.Generator().manual_seed(1))
    assert 42 < laws.sqnr_db(w, PLAIN.quantize(w).dequantize()) < 44.5
