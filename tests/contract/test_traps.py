"""Weights and shapes that break quantizers, walked over the registry: every format has one answer to them, bytes or a
named error, and gives the same one on lanes and in torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

import core.formats.fitting as fitting
from core.errors import NonFinite, OutOfRange, WorkbenchError
from core.formats import FORMATS, Format
from core.formats.fitting import ranges
from core.formats.uniform import Uniform

WRITTEN = [f for f in FORMATS if f.encodable]
SEARCHED = [
    dataclasses.replace(f, range=kind, name=f"{f.name}({kind})")
    for f in WRITTEN
    if isinstance(f, Uniform)
    for kind in ("percentile", "rmse")
    if kind in f.ranges and f.width in (4, 8)
]
EVERY = pytest.mark.parametrize("f", [*WRITTEN, *SEARCHED], ids=lambda f: f.name)


def one(row: int, value: float) -> Callable[[torch.Tensor], None]:
    def change(w: torch.Tensor) -> None:
        w[row % len(w), w.shape[1] // 2] = value

    return change


def rows(row: int, factor: float) -> Callable[[torch.Tensor], None]:
    def change(w: torch.Tensor) -> None:
        w[row % len(w)] *= factor

    return change


def ties(w: torch.Tensor) -> None:
    """Multiples of a half, and a power of two as the largest: quotients by the scale come out halfway."""
    w.mul_(4).round_().div_(2).clamp_(-8, 8)
    w[:, 0] = 8


def minus_zero(w: torch.Tensor) -> None:
    w[-1] = -0.0


TRAPS: dict[str, Callable[[torch.Tensor], None]] = {
    "nan": one(2, math.nan),
    "inf": one(1, math.inf),
    "minus inf": one(0, -math.inf),
    "zero": rows(1, 0.0),
    "minus zero": minus_zero,
    "subnormal": rows(1, 1e-41),
    "smallest": one(0, 2.0**-149),
    "huge": rows(1, 1e36),
    "largest": one(1, 3.4028234663852886e38),
    "one value": lambda w: w.fill_(-0.37),
    "ties": ties,
    "one weight": lambda w: w.mul_((torch.arange(w.numel()).view_as(w) == 1).to(w.dtype)),
}


def outcome(f: Format, w: torch.Tensor) -> dict[str, bytes] | str:
    """Stored bytes by part, and what they decode to; or the error's class and words."""
    importance = torch.ones(w.shape[1]) if f.needs_importance else None
    try:
        q = f.quantize(w, importance)
    except WorkbenchError as error:
        return f"{type(error).__name__}: {error}"
    found = {key: part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for key, part in q.parts.items()}
    back = q.dequantize()
    assert back.shape == w.shape
    assert back.isfinite().all()
    return found | {"decoded": back.numpy().tobytes()}


def without_lanes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fitting, "on_lanes", lambda tensor: False)
    patch.setattr(ranges, "on_lanes", lambda tensor: False)


@EVERY
def test_traps_have_one_answer(f: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = 2 * f.columns_per_grid if f.columns_per_grid > 1 else 72
    for trap, spring in TRAPS.items():
        for dtype in (torch.float32, torch.bfloat16):
            w = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
            spring(w)
            w = w.to(dtype)
            with monkeypatch.context() as patch:
                quick = outcome(f, w)
                without_lanes(patch)
                slow = outcome(f, w)
            assert quick == slow, trap
            bad = (~w.isfinite().all(1)).nonzero()[:, 0].tolist()
            if bad:
                named = f"NonFinite: row {bad[0]} holds NaN or Inf; repair the checkpoint, or keep this tensor as it is"
                assert quick == named, trap
            elif isinstance(quick, str):
                assert trap in ("huge", "largest"), f"{trap}: {quick}"
                assert quick.startswith("OutOfRange: row ")


@EVERY
def test_odd_shapes_have_one_answer(f: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single rows and columns, counts that fill no word, no vector and no block; transposed and strided views."""
    unit = f.columns_per_grid
    shapes = [(1, unit), (7, 3 * unit)] if unit > 1 else [(1, 1), (5, 1), (2, 3), (3, 65), (1, 257)]
    for shape in shapes:
        if f.misfit(shape):
            continue
        w = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        with monkeypatch.context() as patch:
            quick = outcome(f, w)
            strided = outcome(f, torch.stack((w, -w), 2)[:, :, 0])
            transposed = outcome(f, w.t().contiguous().t())
            without_lanes(patch)
            slow = outcome(f, w)
        assert not isinstance(quick, str), f"{shape}: {quick}"
        assert quick == slow == strided == transposed, shape
        assert sum(len(part) for key, part in quick.items() if key != "decoded") == f.nbytes(shape)


@EVERY
def test_errors_carry_the_row_of_a_slice(f: Format) -> None:
    """NonFinite and OutOfRange say the row as a number too: the engine adds where its slice begins."""
    w = torch.randn(300, 2 * f.columns_per_grid if f.columns_per_grid > 1 else 72)
    w[293, 5] = math.nan
    with pytest.raises(NonFinite) as caught:
        f.quantize(w, torch.ones(w.shape[1]))
    assert caught.value.row == 293
    w[293] = 1e36
    if isinstance(outcome(f, w), str):
        with pytest.raises(OutOfRange) as beyond:
            f.quantize(w, torch.ones(w.shape[1]))
        assert beyond.value.row == 293 or not f.row_local
        assert f"row {beyond.value.row} " in str(beyond.value)
