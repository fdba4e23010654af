"""Uniform levels with a fractional zero."""

from __future__ import annotations

import pytest
import torch

from core.formats import get_format
from core.formats.shifted import SHIFTED, Shifted, shifted
from tests.core.formats import laws

ALL = pytest.mark.parametrize("f", SHIFTED, ids=lambda f: f.name)


def test_names() -> None:
    f = get_format("INT5-g48-shift")
    assert isinstance(f, Shifted)
    assert (f.width, f.group, f.symmetric) == (5, 48, False)
    for wrong in ("int4-g0-shift", "int9-shift", "int4-asym-shift", "int4-shift-asym"):
        assert shifted(wrong) is None
    assert get_format("int4-row-shift").name == "int4-shift"


@ALL
def test_format_laws(f: Shifted) -> None:
    w = laws.weights(30, 192)
    laws.check_storage(f, w)
    laws.check_columns(f, w, (5, 64, 130))
    laws.check_rows(f, w)
    assert f.bpw((64, 4096)) == f.width + 0.5


def test_levels_by_hand() -> None:
    f = shifted("int2-row-shift")
    assert f is not None
    q = f.quantize(torch.tensor([[-1.0, 0.0, 1.0, 2.0], [-1.0, -0.75, 0.5, 0.5]]))
    assert q.parts["scale"].tolist() == [[1.0], [0.5]]
    assert q.parts["shift"].tolist() == [[-1.0], [0.0]]
    assert q.codes.tolist() == [[-2, -1, 0, 1], [-2, -2, 1, 1]]
    wide = f.quantize(torch.tensor([[-0.5, 0.1, 0.7, 1.0]]))
    assert wide.parts["shift"].tolist() == [[-1.0]]
    odd = f.quantize(torch.tensor([[-0.75, 0.1, 0.7, 1.5]]))
    assert odd.parts["shift"].tolist() == [[-1.0]]
    off = f.quantize(torch.tensor([[-0.5, 0.1, 0.7, 2.5]]))
    assert off.parts["shift"].tolist() == [[-1.5]]
    assert off.dequantize().tolist() == [[-0.5, 0.5, 0.5, 2.5]]


def test_error_is_near_that_of_whole_zero_points() -> None:
    w = torch.randn(128, 512, generator=torch.Generator().manual_seed(1))
    ours = get_format("int4-g64-shift").quantize(w).dequantize()
    whole = get_format("int4-g64-asym").quantize(w).dequantize()
    assert abs(laws.sqnr_db(w, ours) - laws.sqnr_db(w, whole)) < 0.6
