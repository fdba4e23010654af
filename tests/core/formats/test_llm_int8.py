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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_codes_equal_bitsandbytes(dtype: torch.dtype) -> None:
    import bitsandbytes.functional as bnb

    w = (torch.randn(64, 200, generator=torch.Generator().manual_seed(2)) * torch.logspace(-1, 2, 64)[:, None]).to(
        dtype
    )
    codes, absmax, _ = bnb.int8_vectorwise_quant(w.to(torch.float16))
    parts = PLAIN.quantize(w).parts
    assert torch.equal(parts["absmax"].view(-1), absmax)
    assert torch.equal(parts["codes"], codes)
    assert torch.equal(PLAIN.quantize(w).dequantize(), bnb.int8_vectorwise_dequant(codes, absmax))


def test_float32_weights_differ_by_the_cast_alone() -> None:
    import bitsandbytes.functional as bnb

    w = torch.randn(128, 512, generator=torch.Generator().manual_seed(3))
    codes, absmax, _ = bnb.int8_vectorwise_quant(w.to(torch.float16))
    ours = PLAIN.quantize(w)
    off = (ours.codes.int() - codes.int()).abs()
    assert off.max() <= 1
    assert off.float().mean() < 0.02
    theirs = bnb.int8_vectorwise_dequant(codes, absmax)
    assert laws.sqnr_db(w, ours.dequantize()) > laws.sqnr_db(w, theirs)


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
    for size in (1e-6, 1.0, 6e4):
        flat = torch.full((3, 64), size)
        assert torch.allclose(f.quantize(flat).dequantize(), flat, rtol=0.05)
    huge = torch.full((3, 64), 3e38)
    huge[0] = 1
    with pytest.raises(OutOfRange, match="row 1") as caught:
        f.quantize(huge)
    assert caught.value.row == 1
    tiny = torch.full((3, 64), 1e-40)
    assert f.quantize(tiny).dequantize().isfinite().all()


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
