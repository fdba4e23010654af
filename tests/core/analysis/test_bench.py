"""The bench against the preview of single strategies, the plan's bytes, and the weighted error in plain torch."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.analysis.bench import BenchRequest, Entry, bench, pareto
from core.analysis.error import preview_error
from core.calibration.statistics import Statistic
from core.checkpoints import open_checkpoint
from core.engine.plan import make_plan
from core.errors import Cancelled
from core.formats import get_format
from core.recipes import load
from core.roles import role_of
from core.targets import get_target
from core.targets.base import OutputTensor, Plain
from tests.core.analysis.test_histogram import Memory, Watcher, gaussian

DOWN = "blk.1.ffn_down.weight"


def entries(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry(n, get_format(n.partition("+")[0]), n.partition("+")[2] or "nearest") for n in names)


def request_of(w: torch.Tensor, *names: str, target: str = "compressed-tensors", **more) -> BenchRequest:
    tensor = OutputTensor("w", Plain("w"), tuple(w.shape), "F32", role_of("model.layers.0.mlp.up_proj.weight"))
    return BenchRequest(Memory(w), (tensor,), get_target(target), entries(*names), **more)


def test_bytes_are_the_plans_and_errors_those_of_the_preview(demo: Path):
    target = get_target("gguf")
    with open_checkpoint(demo) as checkpoint:
        outline = target.outline(checkpoint)
        tensor = next(t for t in outline.tensors if t.name == DOWN)
        names = ("q8_0", "q6_k", "q4_k", "iq4_xs", "q2_k")
        rows = bench(BenchRequest(checkpoint, (tensor,), target, entries(*names)))
        assert [r.label for r in rows] == list(names)
        for row in rows:
            plan = make_plan(checkpoint, load(row.label), target, outline=outline)
            planned = next(t for t in plan.tensors if t.tensor.name == DOWN)
            assert row.nbytes == planned.nbytes
            assert row.bpw == pytest.approx(planned.bpw)
            alone = preview_error(checkpoint, tensor, get_format(row.label))
            assert row.sqnr_db == pytest.approx(alone.sums.sqnr_db, rel=1e-9)
            assert row.final
            assert row.seconds > 0
    sqnr = [r.sqnr_db for r in rows]
    assert sqnr == sorted(sqnr, reverse=True)


def test_several_tensors_add_up(demo: Path):
    target = get_target("gguf")
    with open_checkpoint(demo) as checkpoint:
        tensors = tuple(t for t in target.outline(checkpoint).tensors if t.role.kind in ("q", "down"))
        together = bench(BenchRequest(checkpoint, tensors, target, entries("q4_k")))[0]
        each = [bench(BenchRequest(checkpoint, (t,), target, entries("q4_k")))[0] for t in tensors]
    assert together.nbytes == sum(r.nbytes for r in each)
    assert together.weights == sum(t.numel for t in tensors)
    assert together.sums.e2 == pytest.approx(sum(r.sums.e2 for r in each), rel=1e-9)


def test_weighted_by_importance():
    w = gaussian(32, 128)
    importance = torch.linspace(0.1, 5, 128)
    row = bench(request_of(w, "int4-g32", stats={"w": {Statistic.IMPORTANCE: importance}}))[0]
    from core.methods import get_method

    wanted_in = get_target("compressed-tensors").adapt(get_format("int4-g32"), request_of(w).tensors[0])
    known = {Statistic.IMPORTANCE: importance}
    w_hat = get_method("nearest").quantize(w, wanted_in, known, {}).dequantize()
    wanted = float(((w - w_hat).double() ** 2 * importance).sum() / (w.double() ** 2 * importance).sum())
    assert row.weighted == pytest.approx(wanted, rel=1e-6)
    assert bench(request_of(w, "int4-g32"))[0].weighted is None


def test_what_does_not_fit_is_said():
    rows = bench(request_of(gaussian(8, 100), "int4-g32", "q4_k", "int8"))
    assert [r.sums is None for r in rows] == [True, True, False]
    assert "100" in rows[0].note
    assert rows[0].final
    assert rows[0].bpw is None


def test_a_method_without_its_statistics_is_said():
    from core.methods import METHODS

    needing = next((m for m in METHODS if m.needs), None)
    if needing is None:
        return  # every method at hand works on weights alone
    row = bench(request_of(gaussian(8, 128), f"int4-g32+{needing.name}"))[0]
    assert "needs calibration" in row.note


def test_coarse_first_then_finer_and_nothing_twice():
    w = gaussian(1024, 512)
    watcher = Watcher()
    final = bench(request_of(w, "int8", "int4-g32"), watcher)
    labels = [r.label for r in watcher.partials]
    assert labels == ["int8", "int4-g32"] * 2
    assert [r.final for r in watcher.partials] == [False, False, True, True]
    assert watcher.partials[0].sums.count < final[0].sums.count == w.numel()
    assert watcher.progressed[-1] == (4, 4)
    again = Watcher()
    bench(request_of(w, "int8", "int4-g32", "int4-g128", done=final), again)
    assert {r.label for r in again.partials} == {"int4-g128"}
    with pytest.raises(Cancelled):
        bench(request_of(w, "int8"), Watcher(cancel_at=2))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    front = pareto(points)
    kept = [points[i] for i in front]
    assert kept == sorted(set(kept))
    for i, p in enumerate(points):
        beaten = any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
        assert (p in kept) == (not beaten)
        if i in front:
            assert not beaten
    assert all(a[1] > b[1] for a, b in itertools.pairwise(kept))
