"""OBQ: its lanes do what the torch form does, its first choices are exact, and GPTQ does not beat it."""

from __future__ import annotations

import itertools

import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.plan import make_plan
from core.errors import CalibrationError
from core.formats import get_format
from core.methods import Statistic, get_method
from core.methods.hessian import inverted
from core.methods.obq import Rows
from core.recipes import load
from core.targets import get_target
from tests.core.methods.layers import layer, output_error, told

OBQ, GPTQ = get_method("obq"), get_method("gptq")


@pytest.mark.parametrize(
    "name", ["int3-g32", "int4-asym", "int2-g32-shift", "q4_0", "q4_1", "iq4_nl", "nf4", "fp8-e4m3"]
)
def test_lanes_do_what_torch_does(name: str) -> None:
    w, h = layer(rows=6, columns=64)
    w[1, 5] *= 9  # clipped where the range is searched
    fmt, inverse = get_format(name), inverted(h, 0.01)
    assert inverse is not None
    grid = fmt.fit(w * 0.8)
    lanes, plain = (Rows(fmt, w, grid, inverse, lanes=on).solve() for on in (True, False))
    assert float((fmt.decode(lanes, grid) == fmt.decode(plain, grid)).all(1).float().mean()) > 0.8
    assert output_error(w, fmt.decode(lanes, grid), h) == pytest.approx(
        output_error(w, fmt.decode(plain, grid), h), rel=2e-2
    )


@pytest.mark.parametrize("name", ["int3-g128", "int4-g64-asym", "q3_k", "q4_k", "nf4", "mxfp4"])
def test_gptq_does_not_beat_it(name: str) -> None:
    """On the same grids, over rows enough that luck evens out; and the order of columns does not make up for rows'."""
    w, h = layer(rows=64)
    fmt, params = get_format(name), {"effort": "exact"}
    obq, gptq, off = (
        output_error(w, method.quantize(w, fmt, told(h), {**params, **order}).dequantize(), h)
        for method, order in ((OBQ, {}), (GPTQ, {}), (GPTQ, {"act_order": "off", "static_groups": True}))
    )
    assert 0.4 * gptq < obq < gptq < off


def test_the_last_two_weights_are_rounded_best() -> None:
    """With two columns there are two orders; it is never worse than both, and close to the best of all codes."""
    g = torch.Generator().manual_seed(4)
    h = torch.tensor([[2.0, 1.2], [1.2, 1.5]])
    w = torch.randn(200, 2, generator=g)
    fmt = get_format("int4-tensor")
    grid = fmt.fit(w)
    inverse = inverted(h, 0.0)
    assert inverse is not None
    codes = Rows(fmt, w, grid, inverse, lanes=True).solve()
    got = ((w - fmt.decode(codes, grid)).double() @ h.double() * (w - fmt.decode(codes, grid))).sum(1)
    every = torch.tensor(list(itertools.product(range(-8, 8), repeat=2)), dtype=torch.int8)
    e = w[:, None].double() - fmt.decode(every, grid).double()[None]
    best = torch.einsum("rci,ij,rcj->rc", e, h.double(), e).amin(1)
    assert float((got <= best + 1e-6).float().mean()) > 0.75
    assert float(got.mean() / best.mean()) < 1.4


def test_exact_levels_stay() -> None:
    w, h = layer(rows=5, columns=64)
    fmt = get_format("int8-g32")
    grid = fmt.fit(w)
    exact = fmt.decode(fmt.encode(w, grid), grid)
    inverse = inverted(h, 0.01)
    assert inverse is not None
    assert torch.equal(fmt.decode(Rows(fmt, exact, grid, inverse, lanes=True).solve(), grid), exact)


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


def test_no_hessian_at_all_rounds_to_nearest() -> None:
    w, _ = layer(columns=64, rows=3)
    done = OBQ.quantize(w, get_format("int4"), {Statistic.HESSIAN: torch.zeros(64, 64)}, {"range": "minmax"})
    assert done.fallbacks == ("obq → nearest: the Hessian of its inputs cannot be factored",)
    assert torch.equal(done.codes, get_format("int4").quantize(w).codes)
