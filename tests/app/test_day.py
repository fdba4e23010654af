"""A day in the window, as the design tells it: open, look, assign, preflight, run, pause, resume, compare, report."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
from PySide6.QtCore import Qt

from core.checkpoints import open_checkpoint
from core.context import SILENT
from core.recipes.model import Strategy


class Gate:
    """Lets a run go tensor by tensor: `let` how many may be finished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import core.engine.pipeline as pipeline

        self.done, self.let = 0, 0
        self._changed = threading.Condition()
        self.last = threading.Event()
        inner = pipeline.run

        def run(plan, checkpoint, out, *, ctx, workers=None, **kwargs):
            return inner(plan, checkpoint, out, ctx=_Counted(self, ctx), workers=1, **kwargs)

        monkeypatch.setattr(pipeline, "run", run)

    def count(self) -> None:
        with self._changed:
            self.done += 1
            self._changed.wait_for(lambda: self.let > self.done, timeout=30)

    def open(self, let: int) -> None:
        with self._changed:
            self.let = let
            self._changed.notify_all()


class _Counted:
    def __init__(self, gate: Gate, ctx) -> None:
        self._gate, self._ctx = gate, ctx
        self.progress, self.check = ctx.progress, ctx.check

    def partial(self, value) -> None:
        self._ctx.partial(value)
        self._gate.count()


@pytest.fixture(scope="module", autouse=True)
def warm(demo: Path) -> None:
    """Kernels loaded, by a thread that does not stand back for others as the window's do."""
    import torch

    from core.analysis.compare import compare
    from core.formats import get_format
    from core.methods import get_method

    for name in ("q4_k", "q6_k", "q8_0"):
        quantized = get_method("nearest").quantize(torch.randn(8, 256), get_format(name), {}, {}, SILENT)
        quantized.dequantize()
    with open_checkpoint(demo) as a:
        compare(a, a)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch):
    made = Gate(monkeypatch)
    yield made
    made.open(1 << 30)


def test_a_day(window, qtbot, dialogs, demo: Path, settled, gate: Gate, tmp_path: Path) -> None:
    session, actions, jobs = window.session, window.actions_by_id, window.jobs

    # Open, by the keyboard.
    dialogs.folder = demo
    actions["open-folder"].trigger()
    settled()
    table = window.commands.tensors.table
    assert window.focusWidget() is table

    # Look: the histogram of the tensor under the cursor draws the levels of its strategy.
    name = "blk.1.ffn_up.weight"
    table.select_lines(window.commands.tensors.model.lines_of([name]))
    actions["show-histogram"].trigger()
    qtbot.waitUntil(lambda: session.selection == (name,))  # which is handed on when keys and clicks pause
    histogram = window.panel("histogram")
    qtbot.waitUntil(lambda: histogram.state.result is not None and not histogram.state.result.pending, timeout=120_000)
    assert histogram.state.result.name == name
    assert histogram.state.result.dequantized is not None

    # Assign: filter by typing, select all, give them eight bits, see it cost.
    before = session.plan.nbytes
    actions["filter"].trigger()
    qtbot.keyClicks(window.commands.tensors.bar.edit, "attn_k")
    table.selectAll()
    window.commands.tensors.assign(Strategy("q8_0"))
    settled()
    assert session.plan.nbytes > before
    assert {str(t.strategy) for t in session.plan.tensors if "attn_k" in t.tensor.name} == {"q8_0"}
    window.commands.tensors.bar.clear()

    # Preflight: the exact size, and nothing in the way.
    planned = session.plan.nbytes
    assert not [p for p in session.problems if p.severity == "error"]
    assert window.toolbar.size_label.text().endswith("fits")

    # Run, pause: nothing moves; resume: it goes on to the end.
    out = tmp_path / "day.gguf"
    dialogs.output = out
    gate.open(4)
    actions["quantize"].trigger()
    qtbot.waitUntil(lambda: gate.done >= 4, timeout=30_000)
    assert not out.exists()
    (job,) = [info.id for info in jobs.running()]
    actions["pause"].trigger()
    qtbot.waitUntil(lambda: jobs.is_paused(job), timeout=5000)
    gate.open(1 << 30)
    qtbot.wait(150)
    held = gate.done
    qtbot.wait(150)
    assert gate.done == held < len(session.plan.tensors), "a paused run stands still"
    with qtbot.waitSignal(window.quantizer.finished, timeout=60_000) as finished:
        actions["pause"].trigger()
    report = finished.args[0]
    assert out.stat().st_size == planned == report.nbytes

    # Compare: A is what was opened, B what was written; names and permutations meet.
    actions["compare-result"].trigger()
    compare = window.panel("compare")
    qtbot.waitUntil(lambda: compare.state.result is not None, timeout=60_000)
    assert (compare.state.paths["a"], compare.state.paths["b"]) == (str(demo), str(out))
    with open_checkpoint(out) as written:
        assert {t.name for t in compare.state.result.tensors} == set(written.tensors)
    found = {t.name: t.sqnr_db for t in compare.state.result.tensors}
    for t in report.tensors:
        if t.sqnr_db is not None:
            assert found[t.name] == pytest.approx(t.sqnr_db, abs=1e-3)
    assert not compare.state.result.only_a
    assert compare.model.rowCount() == len(found)

    # The worst first; choosing it brings it up everywhere.
    compare.table.horizontalHeader().setSortIndicator(compare.model.section_of("sqnr"), Qt.SortOrder.AscendingOrder)
    worst = compare.model.tensor(0)
    assert worst.sqnr_db == min(v for v in found.values() if math.isfinite(v))
    compare.table.selectRow(0)
    qtbot.waitUntil(lambda: session.selection == (worst.name,))  # which is handed on when clicks pause

    # Report: one page, with what the run measured.
    dialogs.saved_file = tmp_path / "day.html"
    assert actions["save-report"].isEnabled()
    actions["save-report"].trigger()
    qtbot.waitUntil(lambda: dialogs.saved_file.exists(), timeout=30_000)
    qtbot.waitUntil(lambda: "Report saved" in window.notices.text.text(), timeout=5000)
    page = dialogs.saved_file.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert f"{report.nbytes:,} bytes" in page
    assert worst.name in page
    assert sorted(p.name for p in tmp_path.iterdir() if "day" in p.name) == ["day.gguf", "day.html"]
