"""Every format on a device other than the CPU (elsewhere.py): nothing is made on the wrong one or goes by way of the
CPU, and the bytes are the CPU's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import formats as bench
from core.errors import NonFinite
from core.formats import FORMATS, Format, get_format
from core.formats.fitting import fused
from tests.core.formats.elsewhere import Pretend, back, there

CASES = [
    (f, effort, weighted)
    for f in FORMATS
    if f.encodable
    for effort in f.efforts
    for weighted in (False, True)
    if weighted or not f.needs_importance
]


@pytest.fixture(autouse=True)
def _step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler would look behind the device."""
    monkeypatch.setattr(fused, "compiles", lambda device_type: False)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def weights(f: Format) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    w = torch.randn(max(2, f.row_multiple((4, 256))), 256, generator=g).to(torch.bfloat16)
    w[1, :64] = 0
    return w


@pytest.mark.parametrize(
    ("f", "effort", "weighted"), CASES, ids=[f"{f.name}-{e}{'-importance' * i}" for f, e, i in CASES]
)
def test_same_bytes_there(f: Format, effort: str, weighted: bool) -> None:
    w = weights(f)
    shape = (w.shape[0], w.shape[1])
    importance = torch.rand(256, generator=torch.Generator().manual_seed(2)) + 0.01 if weighted else None
    expected = f.quantize(w, importance, effort)
    with Pretend():
        # Importance comes from the CPU, as calibration leaves it.
        made = f.quantize(there(w), importance, effort)
        for key, part in made.parts.items():
            assert same(back(part), expected.parts[key]), key
        assert torch.equal(back(f.dequantize(made.parts, shape)), expected.dequantize())
        codes, grid = f.unpack(made.parts, shape)
        again = f.encode(there(w), grid)
        assert torch.equal(back(f.decode(codes, grid)), expected.dequantize())
    assert same(back(again), f.encode(w, expected.grid))


@pytest.mark.parametrize("f", [f for f in FORMATS if f.encodable], ids=lambda f: f.name)
def test_bad_rows_and_odd_shapes_are_the_same_there(f: Format) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        w = weights(f)
        w[1, 77] = bad
        importance = torch.ones(256) if f.needs_importance else None
        with Pretend(), pytest.raises(NonFinite, match="row 1 holds NaN or Inf") as caught:
            f.quantize(there(w), importance, "exact")
        assert caught.value.row == 1
    columns = 3 * f.columns_per_grid if f.columns_per_grid > 1 else 37
    for rows in (0, 1, 3):
        if f.misfit((rows, columns)) is None:
            w = weights(f)[:1].repeat(rows, 3)[:, :columns].float()
            importance = torch.ones(columns) if f.needs_importance else None
            expected = f.quantize(w, importance, "exact").parts
            with Pretend():
                made = f.quantize(there(w), importance, "exact").parts
                assert all(same(back(part), expected[key]) for key, part in made.items())


@pytest.mark.parametrize("name", ["q4_0", "int8", "nf4"])
def test_the_benchs_rows_of_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed, ratio and the share of the floor that copying sets, for a GPU that takes 1 ms for everything."""
    calls = []

    def milliseconds(call: Callable[[], object], seconds: float) -> float:
        calls.append(call())
        return 1e-3

    monkeypatch.setattr(bench, "gpu_seconds", milliseconds)
    monkeypatch.setattr(bench, "rival", lambda f, columns: None)
    f = get_format(name)
    w = weights(f)
    with Pretend():
        line = bench.gpu_line(next(iter(bench.cases([f], torch.ones(256)))), there(w), 1e9, 0.1)
    stored = f.nbytes((w.shape[0], w.shape[1]))
    floor, decoded = 2 * w.numel() + stored, 4 * w.numel() + stored
    assert line.split() == [
        *(name, "–", f"{w.numel() / 1e3:.0f}", "–", "–", f"{floor / 1e4:.1f}", "%"),
        *(f"{w.numel() / 1e3:.0f}", f"{decoded / 1e4:.1f}", "%"),
    ]
    assert len(calls) == 2
