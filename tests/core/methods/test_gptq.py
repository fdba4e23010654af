"""GPTQ against the paper's algorithm, its compiled lanes against the format's own encode and decode, and what must hold
on every format."""

from __future__ import annotations

import threading

import pytest
import torch

from core.errors import CalibrationError, Cancelled, NonFinite
from core.formats import FORMATS, get_format
from core.formats.base import Format
from core.methods import Statistic, get_method
from core.methods.gptq import COLUMNS, GROUPS, OFF, Job, solve
from core.methods.hessian import FACTORS, Factors, factored
from core.methods.ladders import ladder_of, lines_of
from tests.core.methods.layers import layer, output_error, paper, told

GPTQ = get_method("gptq")
ORDERS = (OFF, GROUPS, COLUMNS)
# One of every way of storing: whole levels with and without zeros and shifts, tables short and long, blocks, rows.
SOME = (
    "int3-g128", "int4-g32-asym", "int4-g64-shift", "int8", "int4-tensor", "int4-col", "q4_0", "q4_1", "q8_0", "q2_k",
    "q3_k", "q4_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "mxfp8", "nvfp4", "nf4", "fp4-dq", "fp8-e4m3",
    "fp8-e4m3-b128", "fp8-e5m2-tensor", "llm-int8", "tq2_0",
)  # fmt: skip


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize(("bits", "group"), [(4, 128), (3, 128), (2, 256)])
def test_the_paper_gives_the_same(bits: int, group: int, symmetric: bool) -> None:
    w, h = layer(columns=512)
    name = f"int{bits}-g{group}{'' if symmetric else '-asym'}"
    ours = GPTQ.quantize(w, get_format(name), told(h), {"act_order": OFF, "range": "minmax"}).dequantize()
    theirs = paper(w, h, bits, group, symmetric=symmetric)
    # A tie that rounds the other way changes the rest of its row.
    assert float(((ours - theirs).abs() < 1e-6).all(1).float().mean()) > 0.9
    assert output_error(w, ours, h) == pytest.approx(output_error(w, theirs, h), rel=5e-3)


@pytest.mark.parametrize("order", [OFF, COLUMNS])
def test_the_paper_with_static_groups_gives_the_same(order: str) -> None:
    w, h = layer(columns=512)
    params = {"act_order": order, "static_groups": True, "range": "minmax", "lazy_cols": 96}
    ours = GPTQ.quantize(w, get_format("int4-g64-asym"), told(h), params).dequantize()
    places = h.diagonal().sort(descending=True, stable=True).indices if order == COLUMNS else torch.arange(512)
    theirs = paper(w, h, 4, 64, symmetric=False, order=places)
    assert float(((ours - theirs).abs() < 1e-6).all(1).float().mean()) > 0.9
    assert output_error(w, ours, h) == pytest.approx(output_error(w, theirs, h), rel=5e-3)


def test_the_factor_is_the_hessian() -> None:
    _, h = layer(columns=64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    factor = factored(h, 0.01, order)
    assert factor is not None
    unit = torch.eye(64).double() + factor.feedback.double()
    back = unit @ torch.diag(factor.weight.double()) @ unit.T
    damped = h.double() + 0.01 * h.double().diagonal().mean() * torch.eye(64).double()
    torch.testing.assert_close(back, damped[order][:, order], rtol=1e-5, atol=1e-5)
    # And what the paper computes from the inverse.
    upper = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order]), upper=True)
    torch.testing.assert_close(factor.weight.double(), 1 / upper.diagonal() ** 2, rtol=1e-4, atol=0)
    assert factor.remarks == ()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", SOME)
def test_lanes_do_what_encode_and_decode_do(name: str, order: str) -> None:
    w, h = layer(rows=70)
    fmt = get_format(name)
    job = Job.of(fmt, 256, order, False, "exact", 48)
    factor = job.factor(h, 0.01, w.device)
    assert factor is not None
    if name == "fp4-dq":  # its grid comes from bitsandbytes' own statistics, and is no smaller for lanes
        assert job.width == 0
    lanes, plain = solve(w, job, factor, lanes=True), solve(w, job, factor, lanes=False)
    assert lanes.codes.dtype == plain.codes.dtype
    # Not codes: some levels have two. llm-int8 rounds what it encodes to 16 bits first, lanes do not.
    same = (lanes.dequantize() == plain.dequantize()).all(1)
    assert float(same.float().mean()) > 0.9 or name == "llm-int8"
    for key in plain.grid.parts:
        a, b = lanes.grid[key], plain.grid[key]
        assert a.dtype == b.dtype
        assert a.shape == b.shape
    assert output_error(w, lanes.dequantize(), h) == pytest.approx(output_error(w, plain.dequantize(), h), rel=1e-2)


@pytest.mark.parametrize("name", SOME)
def test_ladders_and_lines_are_the_formats_levels(name: str) -> None:
    w, _ = layer(rows=4)
    fmt = get_format(name)
    grid, ladder = fmt.fit(w), ladder_of(fmt, 256)
    assert ladder is not None
    lines = lines_of(fmt, grid)
    for column in (0, 37, 255):
        run = column // (lines.width or 256)
        row = min(2, lines.step.shape[0] - 1)
        levels = ladder.values - (0 if lines.zero is None else lines.zero[row, run])
        levels = levels * lines.step[row, run] + (0 if lines.shift is None else lines.shift[row, run])
        for value, code in zip(levels, ladder.codes, strict=True):
            codes = torch.zeros(4, 1, dtype=ladder.codes.dtype)
            codes[2, 0] = code
            assert float(fmt.decode(codes, grid, column)[2, 0]) == pytest.approx(float(value), rel=1e-6, abs=1e-30)


def _fits(fmt: Format) -> bool:
    if not fmt.encodable or fmt.family == "dense" or fmt.columns_per_code > 1:
        return False
    # Its outermost level is the largest weight and the next one 0, where nearly all weights land whatever is made up.
    return fmt.name != "q2_0" and fmt.misfit((16, 256)) is None


@pytest.mark.parametrize("name", [f.name for f in FORMATS if _fits(f)])
def test_the_output_error_falls_on_every_format(name: str) -> None:
    """And not to nothing: no grid of 8 bits or fewer holds these weights."""
    w, h = layer(rows=16)
    fmt, order = get_format(name), COLUMNS
    nearest = get_method("nearest").quantize(w, fmt, told(h), {"effort": "exact"})
    before = output_error(w, nearest.dequantize(), h)
    done = GPTQ.quantize(w, fmt, told(h), {"act_order": order, "effort": "exact"})
    after = output_error(w, done.dequantize(), h)
    # Float rounding of weights to 16 bits sets a floor under llm-int8.
    assert 0.05 * before < after < 0.93 * before
    assert torch.equal(done.dequantize(), fmt.dequantize(done.parts, (16, 256)))
    assert done.fallbacks == ()


def test_codes_of_several_columns_are_made_up_for_run_by_run() -> None:
    w, h = layer(rows=4)
    fmt = get_format("iq3_s")
    before = output_error(w, fmt.quantize(w, told(h)[Statistic.IMPORTANCE]).dequantize(), h)
    for order in ORDERS:
        done = GPTQ.quantize(w, fmt, told(h), {"act_order": order})
        assert 0.3 * before < output_error(w, done.dequantize(), h) < before


def test_order_by_activations_pays() -> None:
    w, h = layer(columns=512, rows=64)
    for name in ("int3-g128", "q3_k"):
        off, groups, columns = (
            output_error(w, GPTQ.quantize(w, get_format(name), told(h), {"act_order": o}).dequantize(), h)
            for o in ORDERS
        )
        assert 0.5 * off < groups < off
        assert 0.5 * off < columns < off


def test_independent_inputs_leave_nothing_to_make_up() -> None:
    w, _ = layer()
    for name in ("int4-g64", "q4_k", "nf4"):
        fmt = get_format(name)
        done = GPTQ.quantize(w, fmt, told(torch.eye(256) * 3), {"act_order": OFF, "range": "minmax", "effort": "exact"})
        grid = fmt.fit(w, torch.ones(256))
        assert torch.equal(done.codes, fmt.encode(w, grid))


def test_panels_and_slices_of_rows_do_not_show() -> None:
    w, h = layer(rows=96)
    for name in ("int4-g32", "q3_k", "int8"):
        fmt = get_format(name)
        whole = GPTQ.quantize(w, fmt, told(h), {})
        for lazy in (8, 100, 4096):
            other = GPTQ.quantize(w, fmt, told(h), {"lazy_cols": lazy})
            assert float((whole.codes == other.codes).float().mean()) > 0.99
        parts = [GPTQ.quantize(w[a : a + 40], fmt, told(h), {}) for a in (0, 40, 80)]
        assert float((torch.cat([p.codes for p in parts]) == whole.codes).float().mean()) > 0.99
        again = GPTQ.quantize(w.bfloat16().float(), fmt, told(h), {})
        assert torch.equal(again.codes, GPTQ.quantize(w.bfloat16(), fmt, told(h), {}).codes)


def test_dead_columns_keep_their_weights() -> None:
    w, h = layer()
    dead = torch.tensor([3, 77, 200])
    h[dead] = 0
    h[:, dead] = 0
    for damp in (0.01, 0.0):
        done = GPTQ.quantize(w, get_format("int8-g128"), told(h), {"damp": damp})
        assert float((done.dequantize() - w)[:, dead].abs().max()) < 0.02 * float(w.abs().max())
        assert float(done.dequantize()[:, dead].abs().max()) > 0
        assert done.fallbacks == ("3 of 256 inputs were always 0: their weights are rounded to nearest",)


@pytest.mark.parametrize("name", ["q2_0", "tq2_0"])
def test_where_it_does_worse_than_nearest_it_is_doubted(name: str) -> None:
    w, h = layer(columns=512)
    fmt, exact = get_format(name), {"effort": "exact"}
    nearest = output_error(w, get_method("nearest").quantize(w, fmt, told(h), exact).dequantize(), h)

    def error(params: dict[str, str]) -> float:
        return output_error(w, GPTQ.quantize(w, fmt, told(h), params).dequantize(), h)

    poor = {**exact, "act_order": OFF}
    assert error(poor) > 1.05 * nearest
    assert GPTQ.doubt(fmt, poor) == f"gptq on exact {name} may be worse than nearest: take effort=best"
    for params in ({}, exact, {"act_order": OFF}):
        assert GPTQ.doubt(fmt, params) is None
        assert error(params) < 0.6 * nearest
    assert GPTQ.doubt(get_format("q4_0"), poor) is None


def test_damping_is_raised_and_said() -> None:
    w, _ = layer()
    low = torch.randn(256, 4, generator=torch.Generator().manual_seed(2))
    h = low @ low.T - 0.02 * torch.eye(256)  # a sum that lost its digits
    done = GPTQ.quantize(w, get_format("int4-g128"), told(h), {"damp": 0.001})
    (said,) = done.fallbacks
    assert said.startswith("Hessian not positive definite: damping raised from 0.001 to 0.01")
    assert bool(done.dequantize().isfinite().all())


def test_what_float32_cannot_factor_float64_does(monkeypatch: pytest.MonkeyPatch) -> None:
    _, h = layer(columns=64)
    real, tried = torch.linalg.cholesky_ex, []

    def fails(square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tried.append(square.dtype)
        lower, info = real(square)
        return lower, torch.tensor(3) if square.dtype == torch.float32 else info

    expected = factored(h, 0.01, torch.arange(64))
    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails)
    factor = factored(h, 0.01, torch.arange(64))
    assert factor is not None
    assert expected is not None
    assert factor.remarks == ()
    assert tried == [torch.float32, torch.float64]
    torch.testing.assert_close(factor.feedback, expected.feedback, rtol=1e-3, atol=1e-5)


def test_a_hessian_of_nothing_rounds_to_nearest() -> None:
    w, _ = layer()
    fmt = get_format("int4-g128")
    h = torch.zeros(256, 256)
    done = GPTQ.quantize(w, fmt, {Statistic.HESSIAN: h}, {"range": "minmax"})
    assert torch.equal(done.codes, fmt.quantize(w).codes)
    assert done.fallbacks == ("gptq → nearest: the Hessian of its inputs cannot be factored",)


def test_bad_input_is_refused_in_a_line() -> None:
    w, h = layer()
    fmt = get_format("int4-g128")
    with pytest.raises(CalibrationError, match="needs the Hessian"):
        GPTQ.quantize(w, fmt, {}, {})
    with pytest.raises(CalibrationError, match="64 × 64 for 256 columns"):
        GPTQ.quantize(w, fmt, told(h[:64, :64]), {})
    broken = h.clone()
    broken[5, 5] = torch.nan
    with pytest.raises(CalibrationError, match="NaN or Inf"):
        GPTQ.quantize(w, fmt, told(broken), {})
    w[7, 9] = torch.inf
    for name in ("int4-g128", "q4_k", "nf4"):
        with pytest.raises(NonFinite, match="row 7"):
            GPTQ.quantize(w, get_format(name), told(h), {})


def test_it_can_be_stopped() -> None:
    from core.context import SILENT

    class Stop:
        progress, partial = SILENT.progress, SILENT.partial
        calls = 0

        def check(self) -> None:
            self.calls += 1
            if self.calls > 1:
                raise Cancelled

    w, h = layer()
    with pytest.raises(Cancelled):
        GPTQ.quantize(w, get_format("int4-g128"), told(h), {}, Stop())


def test_empty_matrices() -> None:
    _, h = layer()
    assert GPTQ.quantize(torch.zeros(0, 256), get_format("int4-g128"), told(h), {}).codes.shape == (0, 256)


def test_a_factor_is_made_once_and_forgotten() -> None:
    _, h = layer(columns=64)
    factors, made, start = Factors(), [], threading.Barrier(6)

    def make():
        made.append(1)
        return factored(h, 0.01, torch.arange(64))

    def ask() -> None:
        start.wait()
        assert factors.get(h, ("a",), make) is not None

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    for n in range(9):
        factors.get(h + n, ("a",), make)
    assert 0 < len(factors) <= 4
    factors.forget()
    assert len(factors) == 0
    w, _ = layer(columns=64)
    GPTQ.forget()
    GPTQ.quantize(w, get_format("int4"), told(h), {})
    GPTQ.quantize(w[:8], get_format("int4"), told(h), {})
    assert len(FACTORS) == 1
    GPTQ.forget()
    assert len(FACTORS) == 0
