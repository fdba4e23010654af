"""OBQ: its order is the paper's, worked out here once more; its lanes do what the torch form does; polishing ends where
no small change helps; and GPTQ does not beat it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from core.checkpoints import open_checkpoint
from core.engine.plan import make_plan
from core.errors import CalibrationError
from core.formats import get_format
from core.formats.uniform import Uniform
from core.methods import Statistic, get_method
from core.methods.hessian import inverted
from core.methods.obq import Rows
from core.recipes import load
from core.targets import get_target
from tests.core.methods.layers import layer, output_error, told

OBQ, GPTQ = get_method("obq"), get_method("gptq")
PAPER = {"search": "paper"}


def inverse_of(h: Tensor, damp: float = 0.01) -> Tensor:
    inverse = inverted(h, damp)
    assert inverse is not None
    return inverse


def paper(w: np.ndarray, levels: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """One row after Frantar & Alistarh, with their code's rule for what is clipped: of the weights still open, w and
    the inverse of their Hessian, the one with the least (q(w) − w)² / [H⁻¹]_qq is rounded; its row and column leave.

    levels  [codes, columns], every value that a weight may take
    """
    rounded, still = np.zeros(len(w)), np.arange(len(w))
    ladder = np.sort(levels, 0)
    while len(still):
        nearest = levels[np.abs(levels - w).argmin(0), np.arange(len(still))]
        low, high = ladder[0] - (ladder[1] - ladder[0]) / 2, ladder[-1] + (ladder[-1] - ladder[-2]) / 2
        far = np.where((w < low) | (w > high), np.abs(w - nearest), 0)
        p = int(far.argmax() if far.any() else ((nearest - w) ** 2 / inverse.diagonal()).argmin())
        rounded[still[p]] = nearest[p]
        w = w - inverse[p] * (w[p] - nearest[p]) / inverse[p, p]
        inverse = inverse - np.outer(inverse[:, p], inverse[p]) / inverse[p, p]
        w, levels, ladder, still = (np.delete(a, p, -1) for a in (w, levels, ladder, still))
        inverse = np.delete(np.delete(inverse, p, 0), p, 1)
    return rounded


@pytest.mark.parametrize(("name", "shrunk"), [("int4-g32", 1.0), ("int3", 0.7), ("int4-g32-asym", 1.0), ("nf4", 1.0)])
def test_its_order_is_the_papers(name: str, shrunk: float) -> None:
    """On grids that fit, and on one from which weights stand out."""
    w, h = layer(rows=20, columns=64)
    fmt = get_format(name)
    grid = fmt.fit(w * shrunk)
    codes = range(fmt.qmin, fmt.qmax + 1) if isinstance(fmt, Uniform) else range(16)
    sort = fmt.encode(w, grid).dtype
    levels = torch.stack([fmt.decode(torch.full(w.shape, c, dtype=sort), grid) for c in codes]).double().numpy()
    inverse = inverse_of(h)
    theirs = np.stack([paper(row, levels[:, r], inverse.numpy()) for r, row in enumerate(w.double().numpy())])
    rows = Rows(fmt, w, grid, lanes=True)
    ours = fmt.decode(rows.codes(rows.greedy(inverse)), grid).double().numpy()
    # Two costs that are equal but for rounding may change places.
    assert np.isclose(ours, theirs, rtol=1e-6, atol=0).all(1).mean() > 0.9


@pytest.mark.parametrize(
    "name", ["int3-g32", "int4-asym", "int2-g32-shift", "q4_0", "q4_1", "iq4_nl", "nf4", "fp8-e4m3"]
)
def test_lanes_do_what_torch_does(name: str) -> None:
    w, h = layer(rows=5, columns=64)
    w[1, 5] *= 9  # clipped where the range is searched
    fmt, inverse = get_format(name), inverse_of(h)
    grid = fmt.fit(w * 0.8)
    lanes, plain = (Rows(fmt, w, grid, on) for on in (True, False))
    start = lanes.greedy(inverse)
    assert float((start == plain.greedy(inverse)).all(1).float().mean()) >= 0.8
    assert torch.equal(lanes.position(lanes.codes(start)), start)
    a, b = lanes.polished(start, h.double()), plain.polished(start, h.double())
    assert float((a == b).all(1).float().mean()) >= 0.8
    assert bool((lanes.cost(a, h) <= lanes.cost(start, h)).all())
    assert float(lanes.cost(a, h).sum()) == pytest.approx(float(plain.cost(b, h).sum()), rel=2e-2)


@pytest.mark.parametrize("name", ["int3-g128", "int4-g64-asym", "q3_k", "q4_k", "nf4", "mxfp4"])
def test_gptq_does_not_beat_it(name: str) -> None:
    """On the same grids, in no row; and not by more than there is to gain."""
    w, h = layer(rows=24)
    fmt = get_format(name)
    best, gptq, alone, off = (
        method.quantize(w, fmt, told(h), {"effort": "exact", **more}).dequantize()
        for method, more in ((OBQ, {}), (GPTQ, {}), (OBQ, PAPER), (GPTQ, {"act_order": "off", "static_groups": True}))
    )

    def costs(w_hat: Tensor) -> Tensor:
        e = (w - w_hat).double()
        return (e @ h.double() * e).sum(1)

    assert bool((costs(best) <= costs(gptq) * (1 + 1e-9)).all())
    assert 0.75 < output_error(w, best, h) / output_error(w, gptq, h) < 0.99
    # The paper's order is no better than GPTQ's: columns with large inputs come last.
    assert 0.85 < output_error(w, alone, h) / output_error(w, off, h) < 1.3


@pytest.mark.parametrize("name", ["int3-g128", "q3_k"])
def test_what_polishing_gains_holds_for_other_inputs(name: str) -> None:
    """The same mixture, other tokens: less than on its own, and not nothing."""
    w, h = layer(rows=24, tokens=4096)
    other = layer(rows=24, tokens=12288)[1] * 1.5 - h * 0.5  # the seed's first tokens are those of h: without them
    fmt, params = get_format(name), {"effort": "exact"}
    best, gptq = (output_error(w, m.quantize(w, fmt, told(h), params).dequantize(), other) for m in (OBQ, GPTQ))
    assert 0.75 < best / gptq < 0.98


def test_no_small_change_is_left() -> None:
    """Of one weight to any level, of two by a level each."""
    w, h = layer(rows=6, columns=64)
    fmt = get_format("int3-g32")
    rows = Rows(fmt, w, fmt.fit(w), lanes=True)
    found = rows.polished(rows.greedy(inverse_of(h)), h.double())
    least = rows.cost(found, h) * (1 - 1e-6)
    for k in range(64):
        for level in range(8):
            other = found.clone()
            other[:, k] = level
            assert bool((rows.cost(other, h) >= least).all())
    for k, j in itertools.combinations(range(0, 64, 3), 2):
        for a, b in itertools.product((-1, 1), repeat=2):
            moved = found.int()
            moved[:, k] += a
            moved[:, j] += b
            assert bool((rows.cost(moved.clamp(0, 7), h) >= least).all())


def test_two_weights_are_rounded_best() -> None:
    """Against every pair of codes."""
    g = torch.Generator().manual_seed(4)
    h = torch.tensor([[2.0, 1.2], [1.2, 1.5]])
    w = torch.randn(200, 2, generator=g)
    fmt = get_format("int4-tensor")
    grid = fmt.fit(w)
    rows, inverse = Rows(fmt, w, grid, lanes=True), inverse_of(h, 0.0)
    alone = rows.greedy(inverse)
    polished = rows.polished(alone, h.double())
    every = torch.tensor(list(itertools.product(range(-8, 8), repeat=2)), dtype=torch.int8)
    e = w[:, None].double() - fmt.decode(every, grid).double()[None]
    best = torch.einsum("rci,ij,rcj->rc", e, h.double(), e).amin(1)
    hits = [float((rows.cost(found, h) <= best * (1 + 1e-6)).double().mean()) for found in (alone, polished)]
    assert 0.75 < hits[0] < 0.97
    assert hits[1] > 0.99


def test_exact_levels_stay() -> None:
    w, h = layer(rows=5, columns=64)
    fmt = get_format("int8-g32")
    grid = fmt.fit(w)
    exact = fmt.decode(fmt.encode(w, grid), grid)
    rows = Rows(fmt, exact, grid, lanes=True)
    found = rows.best((rows.greedy(inverse_of(h)),), h, 0.01)
    assert torch.equal(fmt.decode(rows.codes(found), grid), exact)


def test_dead_columns_and_empty_grids() -> None:
    w, h = layer(rows=4, columns=64)
    h[7], h[:, 7], w[2] = 0, 0, 0
    done = OBQ.quantize(w, get_format("int8-g32"), told(h), {"damp": 0.0})
    nearest = done.format.decode(done.format.encode(w, done.grid), done.grid)
    assert torch.equal(done.dequantize()[:, 7], nearest[:, 7])
    assert not done.dequantize()[2].any()
    assert math.isfinite(output_error(w, done.dequantize(), h))


def test_what_is_too_large_is_refused_before_the_run(tmp_path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CalibrationError, match="up to 1,024 columns, these are 1,056"):
        OBQ.quantize(torch.zeros(2, 1056), get_format("int4-g32"), {Statistic.HESSIAN: torch.eye(1056)}, {})
    assert OBQ.misfit(get_format("iq3_s")) == "needs a code of its own for every weight"
    save_file({"model.layers.0.mlp.up_proj.weight": torch.randn(8, 1056)}, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        plan = make_plan(
            checkpoint, load("int4-g32+obq"), get_target("dense"), statistics=frozenset({Statistic.HESSIAN})
        )
    (error,) = [p for p in plan.problems if p.severity == "error"]
    assert error.message == "obq takes up to 1,024 columns, these are 1,056"


def test_doubts_are_warnings_of_the_plan(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"model.layers.0.mlp.up_proj.weight": torch.randn(8, 256)}, tmp_path / "m.safetensors")
    for recipe, count in (("q2_0+gptq(effort=exact, act_order=off)", 1), ("q2_0+gptq", 0)):
        with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
            plan = make_plan(checkpoint, load(recipe), get_target("dense"), statistics=frozenset({Statistic.HESSIAN}))
        said = [p for p in plan.problems if p.severity == "warning" and "worse than nearest" in p.message]
        assert len(said) == count


def test_no_hessian_at_all_rounds_to_nearest() -> None:
    w, _ = layer(columns=64, rows=3)
    done = OBQ.quantize(w, get_format("int4"), {Statistic.HESSIAN: torch.zeros(64, 64)}, {"range": "minmax"})
    assert done.fallbacks == ("obq → nearest: the Hessian of its inputs cannot be factored",)
    assert torch.equal(done.codes, get_format("int4").quantize(w).codes)
