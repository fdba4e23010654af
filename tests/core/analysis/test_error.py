from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from core.analysis.error import ErrorSums, preview_error, sample_runs
from core.checkpoints import open_checkpoint
from core.errors import NonFinite
from core.formats import get_format
from core.roles import role_of
from core.targets import get_target
from core.targets.base import OutputTensor, RowSource


def sums_of(w: torch.Tensor, v: torch.Tensor) -> ErrorSums:
    return ErrorSums().add(w, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_against_numpy_in_float64(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    w = torch.randn(37, 129, generator=g).to(dtype)
    v = w.float() + 0.01 * torch.randn(37, 129, generator=g)
    x, y = w.double().numpy(), v.double().numpy()
    s = sums_of(w, v)
    assert s.count == w.numel()
    assert s.relative_mse == pytest.approx(((x - y) ** 2).sum() / (x**2).sum(), rel=1e-5)
    assert s.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=1e-4)
    assert s.max_abs == pytest.approx(np.abs(x - y).max(), rel=1e-5)
    assert s.cosine == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()), rel=1e-6)


def test_a_weight_that_became_infinite_is_told_and_breaks_nothing() -> None:
    w = torch.randn(4, 4)
    v = w.clone()
    v[1, 2] = math.inf
    sums = sums_of(w, v)
    assert math.isnan(sums.sqnr_db)
    assert sums.relative_mse == sums.max_abs == math.inf
    assert math.isnan((sums + sums_of(w, w)).sqnr_db)


def test_slices_add_up_and_survive_a_journal() -> None:
    g = torch.Generator().manual_seed(2)
    w, v = torch.randn(64, 32, generator=g), torch.randn(64, 32, generator=g)
    whole = sums_of(w, v)
    parts = sums_of(w[:20], v[:20]) + ErrorSums.from_tuple(sums_of(w[20:], v[20:]).to_tuple())
    assert parts.count == whole.count
    assert parts.to_tuple()[1:] == pytest.approx(whole.to_tuple()[1:], rel=1e-12)


def test_exact_copy_and_zero_tensor() -> None:
    w = torch.randn(4, 4)
    same = sums_of(w, w.clone())
    assert (same.sqnr_db, same.relative_mse, same.max_abs) == (math.inf, 0.0, 0.0)
    zero = torch.zeros(4, 4)
    assert sums_of(zero, zero).sqnr_db == math.inf
    assert sums_of(zero, torch.ones(4, 4)).sqnr_db is None
    assert sums_of(zero, torch.ones(4, 4)).relative_mse is None


@pytest.mark.parametrize("order", [0, 1])
def test_nan_is_never_lost(order: int) -> None:
    bad = sums_of(torch.tensor([[1.0, float("nan")]]), torch.ones(1, 2))
    good = sums_of(torch.ones(1, 2), torch.ones(1, 2))
    total = bad + good if order else good + bad
    assert math.isnan(total.e2)
    assert math.isnan(total.max_abs)


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(0, 5000), columns=st.integers(1, 5000), limit=st.integers(1, 10**6))
def test_sample_runs_cover_without_overlap(rows: int, columns: int, limit: int) -> None:
    runs = sample_runs(rows, columns, limit)
    assert all(0 <= a < b <= rows for a, b in runs)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(runs))
    seen = sum(b - a for a, b in runs)
    if rows * columns <= limit:
        assert seen == rows
    else:
        assert seen >= 1
        assert seen * columns <= max(limit, columns)


def test_preview_agrees_with_the_whole_tensor(demo) -> None:
    """The sample's SQNR lies near the exact one, and is said to be sampled only when it is."""
    with open_checkpoint(demo) as checkpoint:
        tensors = {t.name: t for t in get_target("gguf").outline(checkpoint).tensors}
        tensor = tensors["token_embd.weight"]
        q4_k = get_format("q4_k")
        whole = preview_error(checkpoint, tensor, q4_k)
        part = preview_error(checkpoint, tensor, q4_k, limit=1 << 14)
        assert (whole.sampled, part.sampled) == (False, True)
        assert whole.sums.count == tensor.numel
        assert part.sums.sqnr_db == pytest.approx(whole.sums.sqnr_db, abs=1.0)
        # One scale for the tensor: a sample would find a smaller maximum, so all of it is quantized.
        assert not preview_error(checkpoint, tensor, get_format("int8-tensor"), limit=1 << 14).sampled


class Rows(RowSource):
    """Rows of a matrix in memory."""

    def __init__(self, w: torch.Tensor) -> None:
        object.__setattr__(self, "w", w)

    def names(self):
        return ()

    def read(self, checkpoint, start, stop):
        return self.w[start:stop]


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        *((name, None) for name in ("nvfp4", "fp8-e4m3-tensor", "fp8-e5m2-tensor", "int8-tensor", "int8-col", "int8")),
        *itertools.product(("nvfp4", "fp8-e4m3-tensor"), (math.nan, math.inf)),
    ],
)
def test_a_sample_is_rounded_as_inside_a_tensor_that_is_too_large_to_be_quantized(monkeypatch, name, spoilt) -> None:
    """Its largest weight lies in no row of the sample, and decides about all of them."""
    monkeypatch.setattr("core.analysis.within.WHOLE_WEIGHTS", 1 << 10)
    w = torch.randn(1024, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    runs = sample_runs(1024, 256, 1 << 12)
    away = next(r for r in range(1024) if not any(a <= r < b for a, b in runs))
    w[away] *= 500
    chosen = get_format(name)
    whole = chosen.quantize(w).dequantize()
    assert not any(a <= away + 1 < b for a, b in runs)
    if spoilt is not None:
        w[away + 1, 3] = spoilt
    tensor = OutputTensor("w", Rows(w), (1024, 256), "BF16", role_of("w"))
    found = preview_error(None, tensor, chosen, limit=1 << 12)  # type: ignore[arg-type]
    assert found.sampled
    expected = ErrorSums()
    for a, b in runs:
        expected = expected.add(w[a:b], whole[a:b])
    assert found.sums == expected


def test_rows_are_those_of_the_tensor(tmp_path) -> None:
    """A sample starts somewhere in the tensor: the row that it names is the tensor's."""
    w = torch.randn(4096, 64, dtype=torch.float32)
    w[2000:] = math.nan
    save_file({"model.layers.0.mlp.up_proj.weight": w}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        (tensor,) = get_target("dense").outline(checkpoint).tensors
        with pytest.raises(NonFinite) as found:
            preview_error(checkpoint, tensor, get_format("int8"), limit=1 << 14)
    assert 2000 <= found.value.row < 4096
    assert f"row {found.value.row} " in str(found.value)
